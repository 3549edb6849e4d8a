// The normalise comparator: a run as it was recorded beside the same run normalised. draw.js and rungs.js
// stand before it.

const MODES = ["off", "global", "sample", "channel"], SHOWS = ["split", "blink", "difference"], PAGE = 4;
const LIMIT = 4; // of the colours, at every rung and on both sides: N(0, 1) hardly leaves it
const FACTORS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100], EDGES = Array.from({ length: 73 }, (_, i) => (i - 36) / 8);
const HINTS = [[["[", "]"], "divider"], [["\u2190", "\u2192"], "rung"], [["\u2191", "\u2193"], "channel"],
  [["V"], "split, blink, difference"]];
const MORE_HINTS = [[["\u21e7"], "by ten"], [["PgUp", "PgDn"], "a tenth"], [["Home", "End"], "ends"],
  [["space"], "play"], [["0", "9"], "channel by number"], [["esc"], "leave"]];

function render({ model, el }) {
  const it = traits(model), { get, blob, write, choose } = it;
  const run = unpack(get("_run"), blob), { R, S, C, H, W, names } = run, last = run.planned - 1;
  const cats = names.map((_, c) => (C > 6 ? "x" : c));
  const state = { hover: null, pin: null, drawn: "", turned: true };
  let colours, page = -1, shown = [], thumbs, gaps, plots = [], bells, track = null, wide = 0;
  const show = frame(draw), settle = rest(describe, 180), announce = rest(() => put(live, here.spoken()), 1000);
  const save = throttle(() => model.save_changes(), 50), slide = (v) => (model.set("divider", v), save());
  const slider = railOf(last), part = lens(slider, 34, 16, () => 4 / run.R, () => layout());
  const exact = exactly(it, run, () => state.pin ?? state.hover, () => here.k);
  const here = voyage(it, run, { show, track: () => track, moved: exact.probe, zoom: part.zoom, whole: part.whole });

  /** Of one channel: off, on and gap as v * gain + offset, from exact shifts and scales; mean, std, w1 as [off, on]. */
  function compared(k, s, c) {
    const kinds = ["off", get("mode")], of = (name) => run.value(name, k, s, c);
    const forms = kinds.map((kind) => [1 / of(`${kind}.scale`), -of(`${kind}.shift`) / of(`${kind}.scale`)]);
    const [off, on] = forms, gap = [on[0] - off[0], on[1] - off[1]], w1 = kinds.map((kind) => of(`${kind}.w1`));
    const mean = forms.map(([gain, offset]) => of("latent.mean") * gain + offset);
    return { c, off, on, gap, mean, std: forms.map(([gain]) => of("latent.std") * gain), w1,
      risen: +w1[1].toFixed(2) > +w1[0].toFixed(2) }; // by as much as two decimals show
  }

  // ---- the bands, once
  const words = make("span", { class: "tk-words" }), live = make("div", { class: "tk-off", "aria-live": "polite" });
  const choices = (label, list, name) => segment(label, list.map((value) => [value, value]), choose(name));
  const modes = choices("normalise", MODES, "mode"), shows = choices("compare by", SHOWS, "show");
  const pick = choice("sample", Array.from({ length: S }, (_, s) => run.samples[s] ?? s), choose("sample"));
  const head = make("div", { class: "tk-head" }, make("span", { class: "tk-title", text: "Normalise" }), words,
    ...(S > 1 ? [pick.node] : []), modes.node, shows.node);
  const grid = tiles([""], ["x"], W, H, 1), [big] = grid.list, bar = colourbar();
  const over = make("canvas", { class: "tk-over", width: W, height: H });
  const sides = ["off", "on"].map((side) => make("span", { class: `tk-side tk-side-${side}`, text: side }));
  big.canvas.after(over), big.node.append(...sides);
  const split = splitter(big.node, "divider", slide), top = caption(""), small = make("div");
  const left = make("div", { class: "tk-column tk-pair-left" }, top.node, grid.node, small, bar.node);
  if (R > 1) left.append(slider, here.play.node);
  const shapes = caption("Distribution"), changes = caption("What changed"), differences = caption("Difference");
  const charts = make("div", { class: "tk-plots" }), rows = make("div"), gapTiles = make("div");
  const key = legend([["tk-filled", ""], ["tk-outline", "off"], ["tk-dashed", "N(0, 1)"]]);
  const right = make("div", { class: "tk-column tk-pair-right" }, shapes.node, charts,
    key.node, changes.node, rows, differences.node, gapTiles);
  const bottom = foot(HINTS, MORE_HINTS, layout), table = make("table");
  el.classList.add("tk", "tk-view");
  el.replaceChildren(head, make("div", { class: "tk-stage" }, left, right), bottom.node,
    make("div", { class: "tk-off" }, table), live);

  const marked = (c, place) => ({ name: "latent", c: c ?? get("channel"), ...place });
  const look = (c) => (place) => { state.hover = place && marked(c, place), show(), exact.probe(); };
  probed(big, H, W, look(null), (place) => { state.pin = state.pin ? null : marked(null, place), show(); });

  function buildPage() { // small tiles of four channels, again only for another page of them
    page = Math.floor(get("channel") / PAGE) * PAGE;
    shown = names.map((_, c) => c).slice(page, page + PAGE);
    [thumbs, gaps] = [0, 1].map(() => tiles(shown.map((c) => names[c]), shown.map((c) => cats[c]), W, H, PAGE));
    for (const few of [thumbs, gaps])
      few.list.forEach((t, i) => probed(t, H, W, look((t.c = shown[i])), () => write({ channel: t.c })));
    small.replaceChildren(...(C > 1 ? [thumbs.node] : [])), gapTiles.replaceChildren(gaps.node);
  }

  // ---- layout: after a change of size, mode, sample or channel
  function layout() {
    if (!wide) return; // hidden: it is laid out when it shows
    const width = wide - 2 * parseFloat(getComputedStyle(el).paddingLeft), stacked = wide < 640;
    el.classList.toggle("tk-narrow", wide < 820), el.classList.toggle("tk-small", stacked);
    put(words, (wide < 820 ? run.words.slice(0, 1) : run.words).join(" \u00b7 "));
    if (Math.floor(get("channel") / PAGE) * PAGE !== page) buildPage();
    const space = stacked ? Math.min(width, 480) : Math.round((width - 20) * 0.493);
    const filled = Math.max(grid.fit(space), 120), first = H > W ? space : Math.min(space, filled); // by whole pixels
    const room = stacked ? width : width - 20 - first;
    thumbs.fit(first), gaps.fit(room), (left.style.width = `${first}px`), (right.style.width = `${room}px`);
    modes.set(get("mode")), shows.set(get("show")), pick.set(get("sample")), setWords();
    bottom.set(wide < 820);
    buildPlots(room);
    if (R > 1) buildRail(parseFloat(left.style.width));
    state.drawn = "", show();
  }

  function setWords() {
    const mode = get("mode");
    key.set(0, mode), put(differences.second, `${mode} ${MINUS} off`);
    put(shapes.second, `distance to the unit normal, W\u2081, off \u2192 ${mode}`);
    put(changes.second, `hollow: off \u00b7 filled: ${mode} \u00b7 dashed: target`);
  }

  function buildPlots(room) {
    const s = get("sample"), width = C > 1 ? (room - 16) / 2 : room; // of many channels the chosen one is ink
    const inked = shown.map((c) => (C > 6 && c === get("channel") ? "x tk-focused" : cats[c]));
    plots = shown.map((c, i) => histogram({ width, edges: EDGES, name: names[c], cat: inked[i] }));
    const all = run.rungs.flatMap((_, k) => shown.map((c) => compared(k, s, c)));
    const range = (what, target) => { // over the whole run: nothing moves while one scrubs but what changed
      const values = [target, ...all.flatMap((one) => one[what]).filter(Number.isFinite)];
      const lo = Math.min(...values), hi = Math.max(...values), pad = hi - lo > 0.02 ? 0 : 0.1;
      return { title: what, target, lo: lo - pad, hi: hi + pad };
    };
    bells = dumbbells({ width: room, names: shown.map((c) => names[c]), cats: inked, columns: [
      { ...range("mean", 0), say: (v) => format.signed(Math.abs(v) < 5e-3 ? 0 : v, 2) },
      { ...range("std", 1), say: (v) => format.fixed(v, 2) }] });
    charts.replaceChildren(...plots.map((plot) => plot.node)), rows.replaceChildren(bells.node);
  }

  function buildRail(width) {
    const across = scale.linear(0, last), u = run.rungs.map(across), [a, b] = part.range;
    const marks = ticks(a * last, b * last, 4).filter(Number.isInteger);
    const levels = { title: "\u03c3", unit: "the schedule; drag anywhere", level: true, wish: 3, top: 26, bottom: 78,
      scale: levelScale(run.sigma, 0.1), lines: [{ values: run.sigma }] };
    track = rail(slider, { width, left: 34, right: 16, u, range: part.range, plots: [levels], axisName: "rung",
      ticks: marks.map((v) => [across(v), format.count(v)]),
      minor: Array.from({ length: run.planned }, (_, i) => across(i)),
      faults: run.faults.filter((f) => f[1] === get("sample")).map((f) => f[0]), end: run.stopped ? u.at(-1) : null,
      say: (k) => format.count(run.rungs[k]) });
  }

  // ---- one frame
  function draw() {
    if (!colours || !wide) return;
    const { k } = here, s = get("sample"), kind = get("show"), mark = state.pin ?? state.hover;
    const drawn = [k, s, get("channel"), kind].join(), each = shown.map((c) => compared(k, s, c));
    if (drawn !== state.drawn) {
      drawTiles(k, s, kind, each), drawPlots(k, s, each), settle(), here.play.playing() || announce();
      const went = k !== state.k;
      state.drawn = drawn, state.k = k;
      if (track?.move(k) === false && went) part.whole(); // the thumb left the range
    }
    const cut = kind === "split" ? get("divider") : state.turned ? 0 : 1;
    split.move(get("divider")), split.node.classList.toggle("tk-gone", kind !== "split");
    sides[0].hidden = cut < 0.12 || kind === "difference", sides[1].hidden = cut > 0.88;
    big.canvas.style.clipPath = `inset(0 ${100 - 100 * cut}% 0 0)`, over.style.clipPath = `inset(0 0 0 ${100 * cut}%)`;
    for (const t of [big, ...thumbs.list, ...gaps.list]) markPixel(t, mark && [mark.y, mark.x], H, W);
    drawValue(mark, k, s, each);
  }

  function drawTiles(k, s, kind, each) {
    const colour = (canvas, c, [gain, offset], limit) => {
      const [lo, hi] = ["lo", "hi"].map((end) => run.value(`latent.${end}`, k, s, c) * gain + offset);
      paint(canvas, run.plane("latent", k, s, c), tableOf(colours, lo, hi, limit, run.top));
    };
    const chosen = get("channel"), one = each.find(({ c }) => c === chosen);
    const rms = each.map(({ mean, std }) => Math.hypot(std[1] - std[0], mean[1] - mean[0])).filter(Number.isFinite);
    const most = 3 * Math.max(0, ...rms), factor = FACTORS.findLast((m) => most * m <= LIMIT) ?? FACTORS[0];
    const apart = kind === "difference", reach = LIMIT / factor;
    colour(big.canvas, chosen, one.off, LIMIT), colour(over, chosen, apart ? one.gap : one.on, apart ? reach : LIMIT);
    thumbs.list.forEach((t, i) => {
      colour(t.canvas, t.c, each[i].on, LIMIT), t.node.classList.toggle("tk-focused", t.c === chosen);
      colour(gaps.list[i].canvas, t.c, each[i].gap, reach);
    });
    put(sides[1], apart ? `${get("mode")} ${MINUS} off` : get("mode"));
    put(top.bold, names[chosen]);
    const where = R > 1 ? `rung ${format.count(run.rungs[k])} of ${format.count(last)}` : "the only rung";
    put(top.second, where + (run.sigma[k] > 1 ? ", in units of \u03c3" : `, \u03c3 ${format.sigma(run.sigma[k])}`));
    const shared = apart ? `scale \u00d7 ${factor}` : "same scale both sides";
    const fault = run.faults.find((x) => x[0] === k && x[1] === s);
    put(top.note, fault ? `${fault[2]} NaN, ${fault[3]} Inf` : shared);
    top.note.className = fault ? "tk-warn" : "tk-second";
    put(differences.note, most ? `scale \u00d7 ${factor}` : "none"), differences.note.className = "";
    bar.set(apart ? reach : LIMIT), bar.colour(colours);
    slider.setAttribute("aria-valuenow", run.rungs[k]), slider.setAttribute("aria-valuetext", here.spoken());
  }

  function drawPlots(k, s, each) {
    const two = each.map(({ c, off, on }) => [off, on].map((line) => density(run.plane("latent", k, s, c), run.top,
      run.value("latent.lo", k, s, c), run.value("latent.hi", k, s, c), line, EDGES)));
    const most = clamp(Math.max(...two.flat(2).filter(Number.isFinite)) * 1.04, 0.44, 1.4);
    plots.forEach((plot, i) => {
      const { c, w1, risen } = each[i], [off, on] = w1.map((v) => format.fixed(v, 2));
      plot.set({ off: two[i][0], on: two[i][1], most, text: `W\u2081 ${off} \u2192 ${on}`, warn: risen,
        label: `${names[c]}: distance to the unit normal ${off} off, ${on} with ${get("mode")}` });
    });
    bells.set(each.map(({ mean, std }) => [mean, std]));
  }

  function drawValue(mark, k, s, each) {
    if (!mark) return bottom.say(here.tip || notice(k, each), run.stopped && !here.tip ? "tk-error" : "tk-notice");
    const { c, y, x } = mark, { off, on } = compared(k, s, c), [v, step] = run.read("latent", k, s, c, y, x);
    const own = exact.of(mark, s, k), known = own != null; // Python's answer, where there is a kernel
    const say = ([gain, offset]) => format.coded((own ?? v) * gain + offset, known ? 1e-3 : Math.abs(step * gain));
    bottom.say(`${names[c]} y ${y} x ${x} off ${say(off)} ${get("mode")} ${say(on)}`, "");
  }

  function notice(k, each) {
    const worse = each.filter((one) => one.risen), who = worse.map(({ c }) => names[c]).join(", ");
    const perfect = worse.every(({ mean, std }) => Math.abs(mean[1]) < 5e-3 && Math.abs(std[1] - 1) < 0.04);
    const why = who && `${who}: ${perfect ? "mean 0 and std 1, yet " : ""}farther from N(0, 1)`;
    const tried = !run.ladder && run.rungs[k] !== last && "tk.normalized changes the last rung alone";
    return [run.notice, why || tried].filter(Boolean).join(" \u00b7 ");
  }

  function describe() { // what only a screen reader needs waits until the thumb rests
    const { k } = here, s = get("sample"), mode = get("mode"), name = names[get("channel")];
    const line = (...cells) => make("tr", {}, ...cells.map((text) => make("td", { text })));
    const told = (values) => values.map(format.spoken).join(" to ");
    big.node.setAttribute("aria-label", `channel ${name}, off on the left, ${mode} on the right`);
    thumbs.list.forEach((t) => t.node.setAttribute("aria-label", `${mode}, channel ${names[t.c]}`));
    gaps.list.forEach((t) => t.node.setAttribute("aria-label", `difference, channel ${names[t.c]}`));
    const each = shown.map((c) => compared(k, s, c));
    table.replaceChildren(line("channel", `mean, off to ${mode}`, "std", "distance to the unit normal"),
      ...each.map(({ c, mean, std, w1 }) => line(names[c], ...[mean, std, w1].map(told))));
  }

  // ---- what one can do
  const focus = (c) => c >= 0 && c < C && write({ channel: c });
  function leave() {
    if (bottom.close()) return;
    if (state.pin) return (state.pin = null), show();
    leaveView(el);
  }
  const flip = blinker((turned) => { state.turned = turned, show(); }); // by itself, or by the divider's keys
  const compareBy = () => (get("show") === "blink" ? flip.start() : flip.hold(true), shows.set(get("show")));
  const push = (by) => () => (get("show") === "blink" ? flip.hold(by > 0)
    : slide(clamp(+(get("divider") + by).toFixed(4), 0, 1)));
  gestures(el, slider, here.hands);
  keys(el, { ...here.keys, "[": push(-0.05), "]": push(0.05), digit: focus, "?": bottom.toggle, Escape: leave,
    ArrowUp: () => focus(Math.max(0, get("channel") - 1)), ArrowDown: () => focus(Math.min(C - 1, get("channel") + 1)),
    v: it.next("show", SHOWS) });

  const recolour = () => { colours = lut(el, "diverging", it.blob("lut")), (state.drawn = ""), show(); };
  for (const name of ["mode", "sample", "channel"]) it.on(name, layout);
  it.on("divider", show), it.on("show", compareBy), it.on("_exact", show);
  buildPage(), compareBy();
  it.on("_lut", fitted(it, el, { recolour, layout: (width) => { wide = width, layout(); } }));
  it.until(flip.stop, ...[show, settle, save, announce].map((timer) => timer.stop));
  return it.end;
}

export default { render };

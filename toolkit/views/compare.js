// The comparer: two runs at equal noise, and what differs there. draw.js, rungs.js and pairs.js stand before it.

const MODES = [["side", "side by side"], ["split", "split"], ["blink", "blink"]], PAGE = 16, LETTERS = ["A", "B"];
const AXES = [["log_sigma", "log \u03c3"], ["sigma", "\u03c3"]], MATCHES = ["interpolated", "nearest"];
const ROWS = [[28, 50], [74, 96]], COURSE = [146, 204], LEFT = 40, MOST_LINKS = 64, GAP = `A ${MINUS} B`;
const HINTS = [[["\u2191", "\u2193"], "A or B"], [["\u2190", "\u2192"], "its rungs"], [["X"], "swap"],
  [["N"], "nearest"]];
const MORE_HINTS = [[["\u21e7"], "by ten"], [["PgUp", "PgDn"], "a tenth"], [["Home", "End"], "ends"],
  [["space"], "play"], [["0", "9"], "channel by number"], [["V"], "side by side, split, blink"], [["L"], "axis"],
  [["[", "]"], "divider"], [["esc"], "leave"]];

function render({ model, el }) {
  const it = traits(model), { get, blob, write, choose, next } = it;
  const { runs, table, bits } = unpackRuns(get("_compare"), blob), two = meeting(runs, table, get);
  const { S, C, H, W, names } = runs[0], focus = { nearest: (rung) => two.now().nearest(rung) };
  for (const key of ["R", "rungs", "sigma", "planned", "log_snr"]) // whichever run is focused, to move along
    Object.defineProperty(focus, key, { get: () => two.now()[key] });
  const state = { hover: null, pin: null, drawn: "", turned: true, large: null };
  let colours, page = -1, track = null, ring = () => {}, wide = 0, small = [];
  const show = frame(draw), settle = rest(describe, 180), announce = rest(() => put(live, here.spoken()), 1000);
  const save = throttle(() => model.save_changes(), 50), slide = (v) => (model.set("divider", v), save());
  const here = voyage(it, focus, { show, track: () => track });
  const named = (name) => (C > 1 ? `${name} ${names[get("channel")]}` : name);
  const decodedToo = () => two.pair().every((run) => run.pictures[two.top()].length);
  const look = (place) => { state.hover = place, show(); };

  // ---- the bands, once
  const words = make("span", { class: "tk-words" }), live = make("div", { class: "tk-off", "aria-live": "polite" });
  const modes = segment("compare by", MODES, choose("mode")), axes = segment("axis", AXES, choose("axis"));
  const pick = choice("sample", Array.from({ length: S }, (_, s) => runs[0].samples[s] ?? s), choose("sample"));
  const picks = LETTERS.map((letter, i) => choice(letter, runs.map((run) => run.name), (j) => take(i, j)));
  const head = make("div", { class: "tk-head" }, make("span", { class: "tk-title", text: "Compare" }), words,
    ...(runs.length > 2 ? picks.map((p) => p.node) : []), ...(S > 1 ? [pick.node] : []), modes.node, axes.node);
  const columns = [...LETTERS, "difference"].map((name, i) => {
    const title = caption("Difference"), grid = tiles([""], ["x"], W, H, 1), [big] = grid.list, list = make("div");
    const over = make("canvas", { class: "tk-over", hidden: "" });
    const layer = make("div", { class: "tk-layer" }, big.canvas, over);
    if (i < 2) title.bold.before(make("span", { class: `tk-run tk-cat${i}`, text: name, click: () => turnTo(i) }));
    big.node.prepend(layer), big.node.classList.add("tk-picture");
    probed(big, H, W, look, (place) => { state.pin = state.pin ? null : place, show(); });
    const node = make("div", { class: `tk-column tk-column-${name}` }, title.node, grid.node, list);
    return { ...title, head: title.node, node, grid, big, layer, over, list, name };
  });
  const [first, second, third] = columns, under = make("div", { class: "tk-under" }), bar = colourbar();
  const sides = LETTERS.map((text, i) => make("span", { class: `tk-side tk-side-${i ? "on" : "off"}`, text }));
  const split = splitter(first.big.node, "divider", slide), stage = make("div", { class: "tk-stage" });
  const block = figures("noise level \u03c3", [[`RMS ${GAP}`], ["largest"], ["cosine"]], 0);
  const facts = ["rung", "model calls", "std"].map((name) => ({ name, cells: LETTERS.map(() => make("td")) }));
  const letters = LETTERS.map((text, i) => make("th", { class: `tk-named tk-cat${i}`, text }));
  const both = make("table", { class: "tk-moments tk-two tk-wide" }, make("tr", {}, make("th"), ...letters),
    ...facts.map(({ name, cells }) => make("tr", {}, make("th", { text: name }), ...cells)));
  block.node.lastChild.remove(), block.node.firstChild.after(both), block.node.append(here.play.node);
  const slider = railOf(0), bottom = foot(HINTS, MORE_HINTS, layout), list = make("table");
  third.node.append(bar.node), first.node.append(under), el.classList.add("tk", "tk-view", "tk-comparer");
  el.replaceChildren(head, stage, make("div", { class: "tk-body" }, block.node, slider), bottom.node,
    make("div", { class: "tk-off" }, list), live);

  function buildPage() { // small tiles of a page of channels
    page = Math.floor(get("channel") / PAGE) * PAGE;
    const shown = names.map((_, c) => c).slice(page, page + PAGE), across = shown.length > 4 ? 8 : shown.length;
    small = columns.map((column) => {
      const grid = tiles(shown.map(() => ""), shown, W, H, across);
      grid.list.forEach((t, i) => probed(t, H, W, look, () => write({ channel: (t.c = shown[i]) })));
      grid.list.forEach((t, i) => (t.c = shown[i]));
      column.list.replaceChildren(...(C > 1 ? [grid.node] : []));
      return grid;
    });
  }

  // ---- layout: after a change of size, mode, axis, sample, channel, or of the runs
  function layout() {
    if (!wide) return; // hidden: it is laid out when it shows
    const width = wide - 2 * parseFloat(getComputedStyle(el).paddingLeft), phone = wide < 560, narrow = wide < 820;
    el.classList.toggle("tk-narrow", narrow), el.classList.toggle("tk-small", phone);
    if (Math.floor(get("channel") / PAGE) * PAGE !== page) buildPage();
    const side = get("mode") === "side", shown = side ? columns : [first, third], n = phone ? 1 : shown.length;
    if (side) second.big.node.prepend(second.layer), second.node.append(second.head, second.grid.node, second.list);
    else first.layer.after(second.layer), first.list.after(second.head, second.list);
    for (const node of [split.node, ...sides]) side ? node.remove() : first.big.node.append(node);
    second.layer.classList.toggle("tk-over", !side), stage.replaceChildren(...shown.map((column) => column.node));
    const space = phone ? Math.min(width, 440) : (width - 20 * (n - 1)) / n;
    under.style.width = `${side && !phone ? 2 * space + 20 : space}px`;
    columns.forEach((column, i) => {
      const filled = column.grid.fit(space);
      small[i].fit(filled), column.node.style.width = `${phone ? filled : space}px`;
      for (const node of [column.head, ...(i === 2 ? [bar.node] : [])]) node.style.width = `${filled}px`;
    });
    put(words, phone ? "" : `${runs.length > 2 ? `${runs.length} runs` : "two runs"}, aligned by \u03c3`);
    modes.set(get("mode")), axes.set(get("axis")), pick.set(get("sample")), bottom.set(narrow);
    picks.forEach((p, i) => p.set(two.pair()[i].i)), slider.hidden = two.now().R < 2;
    if (!slider.hidden) buildRail(Math.max(160, narrow ? width : width - 192));
    state.drawn = "", show();
  }

  function buildRail(width) {
    const [p, q] = [two.now(), two.other()], all = [...p.sigma, ...q.sigma], log = get("axis") !== "sigma";
    const across = log ? levelScale(all, 0.06) : scale.linear(0, Math.max(...all)), own = two.at();
    const middle = ROWS.map(([y0, y1]) => (y0 + y1) / 2), least = (v) => (v < 1e-15 ? 0 : v);
    const shared = ["latent", "denoised"].filter((name) => p.codes[name].length && q.codes[name].length);
    const lines = shared.map((name) => ({ name, cat: "x", kind: name === two.top() ? "tk-chief" : "tk-dashes",
      values: p.sigma.map((_, k) => least(two.figure(name, "rms", k))) }));
    const pair = { title: "\u03c3", unit: "both runs on one axis; each tick is a rung", top: 24, bottom: 100,
      scale: () => (100 - middle[own]) / 76, lines: [{ values: p.sigma }],
      draw: (svg, _, px, right) => two.ticks(svg, px, right, across, ROWS, MOST_LINKS) };
    const course = { title: "RMS difference", unit: "at equal \u03c3", top: COURSE[0], bottom: COURSE[1], lines,
      scale: valueScale(lines.flatMap((line) => line.values), true) };
    track = rail(slider, { width, left: LEFT, right: 60, u: p.sigma.map(across), range: [0, 1], plots: [pair, course],
      axisName: "\u03c3", ticks: across.ticks(6).map((v) => [across(v), format.tick(v)]), minor: [], faults: [],
      end: null, say: (k) => format.tick(+p.sigma[k].toPrecision(3)) });
    const svg = slider.querySelector("svg"), level = (k) => p.sigma[k], last = ({ values }) => // where a line ends
      p.rungs.map((_, k) => k).filter((k) => Number.isFinite(values[k])).sort((j, k) => level(k) - level(j))[0];
    const ends = lines.map((line) => (last(line) == null ? COURSE[1] : course.y(line.values[last(line)])));
    spread(ends, 12, ...COURSE).forEach((y, i) =>
      shape(svg, "text", { x: width - 54, y: y + 3.5, class: `tk-tail ${lines[i].kind}` }, lines[i].name));
    const open = shape(svg, "circle", { class: "tk-ring", r: 6, cy: middle[1 - own] });
    ring = (k) => {
      open.classList.toggle("tk-gone", !two.met("latent", k));
      open.setAttribute("cx", LEFT + across(level(k)) * (width - LEFT - 60));
    };
    slider.setAttribute("aria-valuemax", p.planned - 1), slider.setAttribute("aria-label", `rung of ${LETTERS[own]}`);
  }

  // ---- one frame
  function draw() {
    if (!colours || !wide) return;
    const { k } = here, mode = get("mode"), mark = state.pin ?? state.hover, side = mode === "side";
    const drawn = [k, get("sample"), get("channel"), get("match")].join();
    if (drawn !== state.drawn) {
      drawTiles(k), drawWords(k), settle(), here.play.playing() || announce();
      if (!slider.hidden) track.move(k), ring(k);
      state.drawn = drawn;
    }
    const cut = mode === "split" ? get("divider") : state.turned ? 0 : 1;
    split.move(get("divider")), split.node.classList.toggle("tk-gone", mode !== "split");
    sides[0].hidden = cut < 0.12, sides[1].hidden = cut > 0.88;
    second.layer.style.clipPath = side ? "" : `inset(0 0 0 ${100 * cut}%)`;
    first.layer.style.clipPath = side ? "" : `inset(0 ${100 - 100 * cut}% 0 0)`;
    for (const t of [...columns.map((column) => column.big), ...small.flatMap((grid) => grid.list)])
      markPixel(t, mark && [mark.y, mark.x], H, W);
    drawValue(mark, k);
  }

  function drawTiles(k) {
    const name = two.top(), c = get("channel"), pair = two.pair(), photo = decodedToo();
    const large = (state.large = two.planes(name, k, c)), limits = (what) => [0, 1, 2].map((i) =>
      (i < 2 ? two.limit(what, k) : two.reach(what, k))), [far, near] = [limits(name), limits("latent")];
    columns.forEach(({ grid, big, over }, i) => {
      grid.node.classList.toggle("tk-empty", !large.values[i]), over.hidden = true;
      if (!large.values[i]) return;
      if (!photo || i === 2) return paintValues(big.canvas, large.values[i], far[i], colours);
      const place = i === two.at() ? { low: k, share: 0 } : two.met(name, k);
      [[big.canvas, place.low, 1], [over, place.high, place.share]].forEach(([canvas, row, share]) => {
        const entries = share ? pair[i].near(name, row, get("sample")) : []; // between two rungs their images blend
        if (canvas === over) over.hidden = !share, over.style.opacity = share;
        if (!entries.length) return;
        canvas.classList.toggle("tk-photo", Math.max(entries[0][4], entries[0][5]) > 96);
        pair[i].picture(canvas, entries);
      });
    });
    small[0].list.forEach(({ c: channel }, j) => {
      const { values } = two.planes("latent", k, channel);
      small.forEach(({ list: { [j]: t } }, i) => {
        t.node.classList.toggle("tk-focused", channel === c), t.node.classList.toggle("tk-blank", !values[i]);
        if (values[i]) paintValues(t.canvas, values[i], near[i], colours);
      });
    });
  }

  function drawWords(k) {
    const name = two.top(), rms = two.figure(name, "rms", k), { values, off } = state.large, run = two.now();
    const steps = / steps?$|rung$/, photo = decodedToo();
    [first, second].forEach(({ bold, second: more, note }, i) => {
      const one = two.pair()[i];
      put(bold, one.name), put(more, one.words.find((word) => steps.test(word)) ?? "");
      put(note, two.where(i, k)), (note.className = ""), (more.className = "tk-second");
    });
    const finer = rms > 1e-15 && rms < off;
    put(third.second, finer ? `finer than ${bits} bits carry` : `${GAP}, ${named(name)}`);
    third.second.className = finer ? "" : "tk-second";
    put(third.note, values[2] ? `RMS ${format.error(rms)}` : ""), (third.note.className = "");
    bar.set(two.reach(name, k)), bar.node.classList.toggle("tk-gone", !values[2]);
    const pages = C > PAGE ? `channels ${page} to ${Math.min(page + PAGE, C) - 1} of ${C}` : `${C} channels`;
    put(under, two.legend(k, photo ? `${name}, decoded` : named(name), pages, values[2] && wide >= 820));
    two.facts(k).forEach((said, j) => facts.forEach(({ cells }, i) => put(cells[j], said[i])));
    const said = [["rms", format.error], ["largest", format.error], ["cosine", (v) => format.fixed(v, 4)]];
    block.set(format.sigma(run.sigma[k]), said.map(([what, form]) =>
      (values[2] ? form(two.figure(name, what, k)) : BETWEEN)), []);
    slider.setAttribute("aria-valuenow", run.rungs[k]), slider.setAttribute("aria-valuetext", here.spoken());
  }

  function drawValue(mark, k) {
    const { values, off } = state.large ?? {}, name = named(two.top());
    if (!mark || !values) {
      const text = here.tip || [two.notice(k), two.now().notice].filter(Boolean).join(" \u00b7 ");
      return bottom.say(text, "tk-notice");
    }
    const { y, x } = mark, say = (v) => (v ? format.coded(v[y * W + x], 2 * off) : BETWEEN);
    bottom.say(`${name} y ${y} x ${x} A ${say(values[0])} B ${say(values[1])} ${GAP} ${say(values[2])}`, "");
  }

  function describe() { // what only a screen reader needs waits until the thumb rests
    const { k } = here, name = two.top(), level = `at sigma ${format.sigma(two.now().sigma[k])}`;
    const line = (...cells) => make("tr", {}, ...cells.map((text) => make("td", { text })));
    const rms = format.error(two.figure(name, "rms", k));
    columns.forEach(({ big }, i) => big.node.setAttribute("aria-label", i < 2
      ? `${LETTERS[i]}: ${two.pair()[i].name}, ${name} ${level}` : `A minus B, ${named(name)} ${level}, RMS ${rms}`));
    small.forEach((grid, i) => grid.list.forEach((t) =>
      t.node.setAttribute("aria-label", `${columns[i].name}, latent, channel ${names[t.c]}`)));
    list.replaceChildren(line("", ...LETTERS), ...facts.map(({ name: fact, cells }) =>
      line(fact, ...cells.map((cell) => cell.textContent))), line("RMS of A minus B", rms));
  }

  // ---- what one can do: other runs, or the other one of them, are met at the sigma where one is
  function go(a, b, focused) {
    const run = runs[focused === "A" ? a : b], k = run === two.now() ? here.k : two.nearest(run, here.k);
    here.play.stop(), write({ a, b, focused, rung: run.rungs[k], sigma: run.sigma[k] });
  }
  const turnTo = (i) => i !== two.at() && go(get("a"), get("b"), LETTERS[i]);
  function take(i, j) {
    const pair = [get("a"), get("b")];
    if (pair[1 - i] === j) pair[1 - i] = pair[i]; // what is chosen twice is swapped
    pair[i] = j, go(...pair, get("focused"));
  }
  function leave() {
    if (bottom.close()) return;
    if (state.pin) return (state.pin = null), show();
    leaveView(el);
  }
  const flip = blinker((turned) => { state.turned = turned, show(); }), blinks = () => get("mode") === "blink";
  const compareBy = () => (blinks() ? flip.start() : flip.hold(true));
  const push = (by) => () => (blinks() ? flip.hold(by > 0) : slide(clamp(+(get("divider") + by).toFixed(4), 0, 1)));
  gestures(el, slider, here.hands);
  keys(el, { ...here.keys, ArrowUp: () => turnTo(0), ArrowDown: () => turnTo(1), "[": push(-0.05), "]": push(0.05),
    digit: (c) => c < C && write({ channel: c }), "?": bottom.toggle, Escape: leave, n: next("match", MATCHES),
    v: next("mode", MODES.map(([name]) => name)), l: next("axis", AXES.map(([name]) => name)),
    x: () => go(get("b"), get("a"), LETTERS[1 - two.at()]) }); // the run that one is at stays

  const recolour = () => { colours = lut(el, "diverging"), bar.colour(colours), (state.drawn = ""), show(); };
  const refocus = () => { here.k = two.now().nearest(get("rung")), layout(); };
  for (const name of ["a", "b", "focused"]) it.on(name, refocus);
  for (const name of ["mode", "axis", "sample", "channel", "match"]) it.on(name, layout);
  it.on("divider", show), it.on("mode", compareBy), buildPage(), compareBy();
  fitted(it, el, { recolour, layout: (width) => { wide = width, layout(); } });
  it.until(flip.stop, ...[show, settle, save, announce].map((timer) => timer.stop));
  return it.end;
}

export default { render };

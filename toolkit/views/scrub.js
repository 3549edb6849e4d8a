// The scrubber: what every rung of a run holds, one thumb on its schedule. draw.js and rungs.js stand before it.

const PLACES = { level: { top: 26, bottom: 124 }, mean: { top: 166, bottom: 212 }, std: { top: 256, bottom: 304 } };
const AXES = [["step", "step"], ["log_sigma", "log \u03c3"], ["sigma", "\u03c3"]];
const SCALES = [["rung", "per rung"], ["fixed", "fixed"]], PAGE = 16;
const SILENT = "no answer: is a kernel there, and free?";
const FACTS = [["rung"], ["log-SNR"], ["timestep"], ["model calls", true]]; // true: only where there is room
const HINTS = [[["\u2190", "\u2192"], "rung"], [["\u21e7"], "by ten"], [["space"], "play"], [["L"], "axis"]];
const MORE_HINTS = [[["PgUp", "PgDn"], "a tenth"], [["Home", "End"], "ends"], [["\u2191", "\u2193"], "channel"],
  [["0", "9"], "channel by number"], [["F"], "colour scale"], [["D"], "decode latent or denoised"],
  [["N"], "nearest or interpolated"], [["ctrl", "wheel"], "zoom the rail"], [["esc"], "leave"]];

function render({ model, el }) {
  const it = traits(model), { get, blob, write, choose, next } = it;
  const run = unpack(get("_run"), blob), { S, C, H, W, names } = run;
  const cats = names.map((_, c) => (C > 6 ? "x" : c)), last = () => run.planned - 1, kernel = Boolean(get("_kernel"));
  const state = { hover: null, pin: null, drawn: "", told: "", span: "null", u: [] };
  let colours, stage = [], page = -1, track = null, wide = 0, picture = gallery(blob("pictures")), decodable = [];
  const show = frame(draw), settle = rest(describe, 180), announce = rest(() => put(live, here.spoken()), 1000);
  const exact = exactly(it, run, () => state.pin ?? state.hover, () => here.k);
  const ask = supply(it, run, () => run.rungs[here.k], came), load = rest(reach, 300);
  const slider = railOf(last()), finest = () => 4 / (kernel ? run.kept : run.R);
  const part = lens(slider, 34, 30, finest, () => (layout(), load()));
  const focusChannel = (c) => write({ channel: c == null ? null : clamp(c, 0, C - 1) });
  const moved = () => { state.told = "", exact.probe(); };
  const here = voyage(it, run, { show, track: () => track, moved, zoom: part.zoom, whole: part.whole });

  // ---- the bands, once
  const [words, going] = ["words", "live"].map((name) => make("span", { class: `tk-${name}` }));
  const live = make("div", { class: "tk-off", "aria-live": "polite" });
  const axes = segment("axis", AXES, choose("axis")), scales = segment("colour scale", SCALES, choose("scale"));
  const again = make("button", { type: "button", class: "tk-button", text: "refresh", click: refresh });
  const pick = choice("sample", Array.from({ length: S }, (_, s) => run.samples[s] ?? s), choose("sample"));
  const head = make("div", { class: "tk-head" }, make("span", { class: "tk-title", text: run.title }), words,
    going, again, ...(S > 1 ? [pick.node] : []), scales.node);
  const bench = make("div", { class: "tk-stage" });
  const facts = FACTS.filter((_, i) => [true, run.log_snr, run.timestep, run.nfe][i]), few = Math.min(C, 4);
  const block = figures("noise level \u03c3", facts, few), body = make("div", { class: "tk-body" }, block.node);
  const bottom = foot(HINTS, MORE_HINTS, layout), table = make("table"), silence = rest(() => came(0, SILENT), 5000);
  scales.node.classList.add("tk-wide"), el.classList.add("tk", "tk-view");
  el.replaceChildren(head, bench, body, bottom.node, make("div", { class: "tk-off" }, table), live);

  // ---- stage: columns of tiles, built again only for another page of channels
  function buildStage() {
    page = Math.floor((get("channel") ?? 0) / PAGE) * PAGE;
    const shown = names.slice(page, page + PAGE), n = shown.length;
    const kinds = ["latent", "denoised"].filter((kind) => run.floats.some((table) => table[0] === `${kind}.lo`));
    const alone = kinds.length === 1 && !decodable.length;
    const across = alone ? Math.min(n, n <= 8 ? 4 : 8) : Math.ceil(Math.sqrt(n));
    stage = kinds.map((name) => {
      const bar = colourbar(), grid = tiles(shown, cats.slice(page, page + PAGE), W, H, across);
      grid.list.forEach((t, i) => listen(Object.assign(t, { name, c: page + i })));
      return { ...stand(name, grid, bar.node), bar };
    });
    if (decodable.length) {
      const [w, h] = run.pictures[decodable[0]][0].slice(4), grid = tiles([""], ["x"], w, h, 1), [t] = grid.list;
      const other = make("button", { type: "button", click: swap }), from = make("span");
      t.node.classList.add("tk-picture"), t.canvas.classList.toggle("tk-photo", Math.max(w, h) > 96), listen(t);
      stage.push({ ...stand("decoded", grid, make("div", { class: "tk-under" }, other, from)), other, from });
    }
    bench.replaceChildren(...stage.map((column) => column.node));
  }

  function listen(t) {
    const at = (place) => place && { name: t.name ?? "latent", c: t.c ?? get("channel") ?? 0, ...place };
    probed(t, H, W, (place) => { state.hover = at(place), show(), exact.probe(); }, (place) => {
      const p = at(place), same = state.pin && JSON.stringify(p) === JSON.stringify(state.pin);
      state.pin = same ? null : p, show(), exact.probe();
    });
  }

  // ---- layout: after a change of size, axis, sample, channel or range
  function layout() {
    const width = wide - 2 * parseFloat(getComputedStyle(el).paddingLeft), phone = wide < 560, narrow = wide < 820;
    el.classList.toggle("tk-narrow", narrow), el.classList.toggle("tk-small", phone);
    el.classList.toggle("tk-smooth", get("interpolation") === "linear");
    put(words, (narrow ? run.words.slice(0, phone ? 2 : 3) : run.words).join(" \u00b7 "));
    if (Math.floor((get("channel") ?? 0) / PAGE) * PAGE !== page) buildStage();
    const n = stage.length, space = phone ? Math.min(width, 440) : (width - 20 * (n - 1)) / n;
    for (const column of stage) column.fit(space, n === 1 && C === 1 ? 320 : Infinity, phone || n === 1);
    axes.set(get("axis")), scales.set(get("scale")), pick.set(get("sample"));
    bottom.set(narrow, narrow || run.R === 1);
    if (slider.isConnected) buildRail(Math.max(160, narrow ? width : width - 192));
    state.drawn = "", show();
  }

  function buildRail(width) {
    const kind = get("axis"), s = get("sample"), steps = kind === "step", [a, b] = part.range;
    const all = [...run.sigma, ...run.plan.map((rung) => rung[1])]; // those to come, too
    const linear = scale.linear(0, steps ? last() : Math.max(...all));
    const across = kind === "log_sigma" ? levelScale(all, 0.06) : linear;
    const u = state.u = (steps ? run.rungs : run.sigma).map(across);
    const plan = run.plan.map(([row, v]) => [across(steps ? row : v), v]);
    const marks = steps ? ticks(a * last(), b * last(), 4).filter(Number.isInteger) : across.ticks(5);
    const plot = (what) => {
      const values = (c) => run.rungs.map((_, k) => run.value(`latent.${what}`, k, s, c));
      const lines = names.map((name, c) => ({ name, cat: cats[c], values: values(c) }));
      const limits = valueScale(lines.flatMap((line) => line.values), what === "std");
      return { title: what, unit: "per channel", lines, scale: limits, ...PLACES[what] };
    };
    const levels = { title: "\u03c3", unit: "the schedule; drag anywhere", level: true, wish: 4,
      ...PLACES.level, scale: levelScale(all, 0.1), lines: [{ values: run.sigma }] };
    track = rail(slider, { width, left: 34, right: 30, u, range: part.range, focused: names[get("channel")],
      plan, newest: run.live ? run.R - 1 : null, plots: run.R ? [levels, plot("mean"), plot("std")] : [levels],
      axisName: steps ? "rung" : AXES.find((x) => x[0] === kind)[1],
      ticks: marks.map((v) => [across(v), steps ? format.count(v) : format.tick(v)]),
      minor: steps ? Array.from({ length: run.planned }, (_, i) => across(i)) : u,
      faults: run.faults.filter((f) => f[1] === s).map((f) => f[0]), end: run.stopped && steps ? u.at(-1) : null,
      say: (k) => (steps ? format.count(run.rungs[k]) : format.tick(+run.sigma[k].toPrecision(3))) });
  }

  // ---- one frame
  function draw() {
    if (!colours) return;
    if (!run.R) return drawNothing();
    const { k } = here, s = get("sample"), mark = state.pin ?? state.hover;
    const key = [k, s, get("scale"), get("decode")].join(); // what the tiles and figures depend on
    for (const column of stage) {
      if (key !== state.drawn) column.name === "decoded" ? drawPicture(column, k, s) : drawTiles(column, k, s);
      for (const t of column.grid.list) {
        markPixel(t, mark && [mark.y, mark.x], H, W);
        t.node.classList.toggle("tk-focused", t.c != null && t.c === get("channel"));
      }
    }
    const went = run.rungs[k] !== state.row;
    if (key !== state.drawn) state.row = run.rungs[k];
    if (key !== state.drawn && track?.move(k) === false && went) return part.whole(); // the thumb left the range
    if (key !== state.drawn) drawFigures(k, s), settle(), here.play.playing() || announce();
    state.drawn = key;
    drawValue(mark, k, s);
  }

  function drawNothing() {
    const bad = state.told || run.stopped, none = "no rung is there yet";
    for (const { grid, bar } of stage) grid.node.classList.add("tk-empty"), bar?.node.classList.add("tk-gone");
    block.set("\u2013", [`none of ${format.count(last())}`], []), slider.setAttribute("aria-valuetext", none);
    bottom.say(bad || none, bad ? "tk-error" : "tk-notice");
  }

  function drawTiles({ name, grid, bar, second, note }, k, s) {
    const fixed = get("scale") === "fixed", latent = name === "latent";
    const limit = fixed ? run.most(name, s) : run.limit(name, k, s);
    const called = latent || run.called[k], fault = latent && run.faults.find((f) => f[0] === k && f[1] === s);
    const pages = C > PAGE ? `channels ${page} to ${Math.min(page + PAGE, C) - 1} of ${C}` : "x at this rung";
    grid.node.classList.toggle("tk-empty", !called);
    bar.set(limit), bar.colour(colours), bar.node.classList.toggle("tk-gone", !called);
    put(second, latent ? pages : called ? "what the model sees in it" : "the model was not called here");
    put(note, fault ? `${fault[2]} NaN, ${fault[3]} Inf` : !latent ? "" : fixed ? "scale of run" : "scale per rung");
    note.className = fault ? "tk-warn" : "tk-second";
    for (const t of called ? grid.list : []) {
      const lo = run.value(`${name}.lo`, k, s, t.c), hi = run.value(`${name}.hi`, k, s, t.c);
      paint(t.canvas, run.plane(name, k, s, t.c), tableOf(colours, lo, hi, limit, run.top));
    }
  }

  function drawPicture(column, k, s) {
    const asked = decodable.includes(get("decode")) ? get("decode") : decodable[0];
    const kind = run.called[k] === false && run.pictures.latent.length ? "latent" : asked, near = run.near(kind, k, s);
    put(column.second, kind === asked ? `the ${kind} as an image` : "the latent: no model call here");
    put(column.note, run.pictures.size.join(" \u00d7 "));
    column.other.hidden = decodable.length < 2;
    const instead = `decode the ${asked === "latent" ? "denoised" : "latent"} instead`;
    column.other.replaceChildren(make("b", { text: "D" }), instead);
    column.grid.node.classList.toggle("tk-empty", !near.length);
    if (!near.length) return;
    put(column.from, near[0][0] === k ? "" : `image of rung ${run.rungs[near[0][0]]}`);
    picture(column.grid.list[0].canvas, near);
  }

  function drawFigures(k, s) {
    const said = [last() ? `${format.count(run.rungs[k])} of ${format.count(last())}` : "the only one"];
    if (run.log_snr) said.push(format.logSnr(run.log_snr[k]));
    if (run.timestep) said.push(format.fixed(run.timestep[k], run.timestep[k] % 1 ? 1 : 0));
    if (run.nfe) said.push(format.count(run.nfe[k]));
    const first = clamp((get("channel") ?? 0) - 1, 0, Math.max(0, C - 4));
    const moment = (what, c) => run.value(`latent.${what}`, k, s, c);
    const row = (name, c) => ({ name, cat: cats[c], mean: moment("mean", c), std: moment("std", c) });
    block.set(format.sigma(run.sigma[k]), said, names.map(row).slice(first, first + 4));
    slider.setAttribute("aria-valuenow", run.rungs[k]), slider.setAttribute("aria-valuetext", here.spoken());
  }

  function drawValue(mark, k, s) {
    const bad = !here.tip && (state.told || run.stopped);
    if (!mark) return bottom.say(here.tip || state.told || notice(k), bad ? "tk-error" : "tk-notice");
    const { name, c, y, x } = mark, known = exact.of(mark, s, k); // Python's answer, where there is a kernel
    const text = known == null ? format.coded(...run.read(name, k, s, c, y, x)) : format.signed(known);
    bottom.say(`${name === "latent" ? "" : `${name} `}${names[c]} y ${y} x ${x} \u2192 ${text}`, "");
  }

  function notice(k) {
    if (get("interpolation") === "linear") return "tiles interpolated, not as measured";
    if (run.live) return k === run.R - 1 ? "follows the newest rung until one scrubs" : "End follows the newest rung";
    const lacks = part.zoomed() ? "loading more needs a kernel" : "zooming loads more";
    return [run.notice, run.kept > run.R && part.zoomed() !== kernel && lacks].filter(Boolean).join(" \u00b7 ");
  }

  function describe() { // what only a screen reader needs waits until the thumb rests
    const { k } = here, s = get("sample");
    const line = (...cells) => make("tr", {}, ...cells.map((text) => make("td", { text })));
    const both = (name, c) => ["mean", "std"].map((what) =>
      `${what} ${format.spoken(run.value(`${name}.${what}`, k, s, c))}`).join(", ");
    for (const { node, name, c } of stage.flatMap((column) => column.grid.list))
      node.setAttribute("aria-label", name ? `${name}, channel ${names[c]}, ${both(name, c)}` : "decoded image");
    table.replaceChildren(line("rung", run.rungs[k], "sigma", format.sigma(run.sigma[k])),
      ...names.map((name, c) => line(name, both("latent", c))));
  }

  // ---- what one can do
  const swap = next("decode", ["denoised", "latent"]);
  const digit = (c) => c < C && focusChannel(c === get("channel") ? null : c);
  function refresh() { again.ariaDisabled = "true", silence(), ask({ refresh: true }); }
  function came(row, error) { // Python has answered, or is silent
    silence.stop(), again.ariaDisabled = "false", state.told = error ?? "", show();
    if (error) return;
    here.k = run.nearest(row ?? get("rung")), page = -1, picture = gallery(run.bytes.pictures);
    equip(), layout();
  }
  function equip() { // with what a run has from its second rung on, or by its plan, or while it is not whole
    const railed = run.R > 1 || run.plan.length > 0;
    decodable = ["denoised", "latent"].filter((kind) => run.pictures[kind].length);
    el.classList.toggle("tk-one", !railed), (going.hidden = !run.live), slider.setAttribute("aria-valuemax", last());
    put(going, run.steps ? `rung ${format.count(run.steps - 1)} of ${format.count(last())}` : "no rung yet");
    if (railed && !slider.isConnected)
      block.node.append(here.play.node), body.append(slider), scales.node.before(axes.node);
    again.hidden = !run.unfinished || !kernel;
  }
  function reach() { // the rungs of the range that is zoomed to
    const span = part.zoomed() ? spanOf(run, state.u, part.range) : null, key = String(span);
    if (kernel && run.kept > run.R && key !== state.span) (state.span = key), ask({ span });
  }
  function leave() {
    if (bottom.close()) return;
    state.pin || get("channel") != null ? ((state.pin = null), focusChannel(null), show()) : leaveView(el);
  }
  gestures(el, slider, here.hands);
  keys(el, { ...here.keys, digit, "?": bottom.toggle, Escape: leave,
    ArrowUp: () => focusChannel((get("channel") ?? C) - 1), ArrowDown: () => focusChannel((get("channel") ?? -1) + 1),
    l: next("axis", AXES.map((x) => x[0])), f: next("scale", SCALES.map((x) => x[0])), d: swap,
    n: next("interpolation", ["nearest", "linear"]) });

  const recolour = () => { colours = lut(el, "diverging", blob("lut")), (state.drawn = ""), show(); };
  for (const name of ["axis", "sample", "channel", "scale", "interpolation"]) it.on(name, layout);
  it.on("decode", show), it.on("_exact", show), it.on("rung", exact.probe);
  equip(), buildStage();
  it.on("_lut", fitted(it, el, { recolour, layout: (width) => { wide = width, layout(); } }));
  it.until(...[show, settle, announce, load, silence].map((timer) => timer.stop));
  return it.end;
}

export default { render };

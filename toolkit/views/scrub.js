// The scrubber: what every rung of a run holds, one thumb on its schedule. draw.js and rungs.js stand before it.

const PLACES = { level: [26, 124], mean: [166, 212], std: [256, 304] }; // top and bottom of the plots
const AXES = [["step", "step"], ["log_sigma", "log \u03c3"], ["sigma", "\u03c3"]];
const SCALES = [["rung", "per rung"], ["fixed", "fixed"]], PAGE = 16;
const FACTS = [["rung"], ["log-SNR"], ["timestep"], ["model calls", true]]; // true: only where there is room
const HINTS = [[["\u2190", "\u2192"], "rung"], [["\u21e7"], "by ten"], [["space"], "play"], [["L"], "axis"]];
const MORE_HINTS = [[["PgUp", "PgDn"], "a tenth"], [["Home", "End"], "ends"], [["\u2191", "\u2193"], "channel"],
  [["0", "9"], "channel by number"], [["F"], "colour scale"], [["D"], "decode latent or denoised"],
  [["N"], "nearest or interpolated"], [["ctrl", "wheel"], "zoom the rail"], [["esc"], "leave"]];

function render({ model, el }) {
  const it = traits(model), { get, blob, write, choose, next } = it;
  const run = unpack(get("_run"), blob), { R, S, C, H, W, names } = run;
  const cats = names.map((_, c) => (C > 6 ? "x" : c)), last = run.planned - 1, picture = gallery(blob("pictures"));
  const decodable = ["denoised", "latent"].filter((kind) => run.pictures[kind].length);
  const state = { range: [0, 1], hover: null, pin: null, drawn: "" };
  let colours, stage = [], page = -1, track = null, wide = 0;
  const show = frame(draw), settle = rest(describe, 180), announce = rest(() => put(live, here.spoken()), 1000);
  const probe = rest(() => {
    const p = state.pin ?? state.hover;
    if (p) write({ pixel: [p.name, p.c, p.y, p.x, run.rungs[here.k]] });
  }, 150);
  const focusChannel = (c) => write({ channel: c == null ? null : clamp(c, 0, C - 1) });
  const here = voyage(it, run, { show, track: () => track, moved: probe, zoom, whole });

  // ---- the bands, once
  const words = make("span", { class: "tk-words" }), live = make("div", { class: "tk-off", "aria-live": "polite" });
  const axes = segment("axis", AXES, choose("axis")), scales = segment("colour scale", SCALES, choose("scale"));
  const pick = choice("sample", Array.from({ length: S }, (_, s) => run.samples[s] ?? s), choose("sample"));
  const head = make("div", { class: "tk-head" }, make("span", { class: "tk-title", text: run.title }), words,
    ...(S > 1 ? [pick.node] : []), ...(R > 1 ? [axes.node] : []), scales.node);
  const bench = make("div", { class: "tk-stage" });
  const known = [true, run.log_snr, run.timestep, run.nfe];
  const block = figures("noise level \u03c3", FACTS.filter((_, i) => known[i]), Math.min(C, 4));
  const slider = railOf(last), body = make("div", { class: "tk-body" }, block.node);
  if (R > 1) block.node.append(here.play.node), body.append(slider);
  const bottom = foot(HINTS, MORE_HINTS, layout), table = make("table");
  scales.node.classList.add("tk-wide"), el.classList.add("tk", "tk-view"), el.classList.toggle("tk-one", R === 1);
  el.replaceChildren(head, bench, body, bottom.node, make("div", { class: "tk-off" }, table), live);

  // ---- stage: columns of tiles, built again only for another page of channels
  function buildStage() {
    page = Math.floor((get("channel") ?? 0) / PAGE) * PAGE;
    const shown = names.slice(page, page + PAGE), n = shown.length, kinds = ["latent"];
    if (run.codes.denoised.length) kinds.push("denoised");
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
    const name = t.name ?? "latent", pixel = (event) => pixelAt(event, t.node, H, W);
    const at = (event) => ({ name, c: t.c ?? get("channel") ?? 0, ...pixel(event) });
    const over = (event) => { state.hover = at(event), show(), probe(); };
    t.node.addEventListener("pointerdown", over), t.node.addEventListener("pointermove", over);
    t.node.addEventListener("pointerleave", () => { state.hover = null, show(); });
    t.node.addEventListener("click", (event) => {
      const p = at(event), same = state.pin && JSON.stringify(p) === JSON.stringify(state.pin);
      state.pin = same ? null : p, show(), probe();
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
    bottom.set(narrow, narrow || R === 1);
    if (R > 1) buildRail(Math.max(160, narrow ? width : width - 192));
    state.drawn = "", show();
  }

  function buildRail(width) {
    const kind = get("axis"), s = get("sample"), steps = kind === "step", [a, b] = state.range;
    const linear = scale.linear(0, steps ? last : Math.max(...run.sigma));
    const across = kind === "log_sigma" ? levelScale(run.sigma, 0.06) : linear;
    const u = (steps ? run.rungs : run.sigma).map(across);
    const marks = steps ? ticks(a * last, b * last, 4).filter(Number.isInteger) : across.ticks(5);
    const place = (what) => ({ top: PLACES[what][0], bottom: PLACES[what][1] });
    const plot = (what) => {
      const values = (c) => run.rungs.map((_, k) => run.value(`latent.${what}`, k, s, c));
      const lines = names.map((name, c) => ({ name, cat: cats[c], values: values(c) }));
      const limits = valueScale(lines.flatMap((line) => line.values), what === "std");
      return { title: what, unit: "per channel", lines, scale: limits, ...place(what) };
    };
    const levels = { title: "\u03c3", unit: "the schedule; drag anywhere", level: true, wish: 4,
      ...place("level"), scale: levelScale(run.sigma, 0.1), lines: [{ values: run.sigma }] };
    track = rail(slider, { width, left: 34, right: 30, u, range: state.range, focused: names[get("channel")],
      plots: [levels, plot("mean"), plot("std")], axisName: steps ? "rung" : AXES.find((x) => x[0] === kind)[1],
      ticks: marks.map((v) => [across(v), steps ? format.count(v) : format.tick(v)]),
      minor: steps ? Array.from({ length: run.planned }, (_, i) => across(i)) : u,
      faults: run.faults.filter((f) => f[1] === s).map((f) => f[0]), end: run.stopped && steps ? u.at(-1) : null,
      say: (k) => (steps ? format.count(run.rungs[k]) : format.tick(+run.sigma[k].toPrecision(3))) });
  }

  // ---- one frame
  function draw() {
    if (!colours) return;
    const { k } = here, s = get("sample"), mark = state.pin ?? state.hover;
    const key = [k, s, get("scale"), get("decode")].join(); // what the tiles and figures depend on
    for (const column of stage) {
      if (key !== state.drawn) column.name === "decoded" ? drawPicture(column, k, s) : drawTiles(column, k, s);
      for (const t of column.grid.list) {
        markPixel(t, mark && [mark.y, mark.x], H, W);
        t.node.classList.toggle("tk-focused", t.c != null && t.c === get("channel"));
      }
    }
    if (key !== state.drawn && track?.move(k) === false) return whole(); // the thumb left the range that is zoomed to
    if (key !== state.drawn) drawFigures(k, s), settle(), here.play.playing() || announce();
    state.drawn = key;
    drawValue(mark, k, s);
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
    const said = [last ? `${format.count(run.rungs[k])} of ${format.count(last)}` : "the only one"];
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
    const plain = here.tip || (get("interpolation") === "linear" ? "tiles interpolated, not as measured" : run.notice);
    if (!mark) return bottom.say(plain, run.stopped && !here.tip ? "tk-error" : "tk-notice");
    const { name, c, y, x } = mark, exact = get("_exact"), at = [name, c, y, x, run.rungs[k]].join();
    const known = exact?.at?.join() === at && exact.sample === s; // Python's answer, where there is a kernel
    const text = known ? format.signed(Number(exact.value)) : format.coded(...run.read(name, k, s, c, y, x));
    bottom.say(`${name === "latent" ? "" : `${name} `}${names[c]} y ${y} x ${x} \u2192 ${text}`, "");
  }

  function describe() { // what only a screen reader needs waits until the thumb rests
    const { k } = here, s = get("sample");
    const line = (...cells) => make("tr", {}, ...cells.map((text) => make("td", { text })));
    const moment = (name, what, c) => format.spoken(run.value(`${name}.${what}`, k, s, c));
    const both = (name, c) => `mean ${moment(name, "mean", c)}, std ${moment(name, "std", c)}`;
    for (const { node, name, c } of stage.flatMap((column) => column.grid.list))
      node.setAttribute("aria-label", name ? `${name}, channel ${names[c]}, ${both(name, c)}` : "decoded image");
    table.replaceChildren(line("rung", run.rungs[k], "sigma", format.sigma(run.sigma[k])),
      ...names.map((name, c) => line(name, both("latent", c))));
  }

  // ---- what one can do
  const swap = next("decode", ["denoised", "latent"]);
  function whole() { state.range = [0, 1], layout(); }
  function leave() {
    if (bottom.close()) return;
    if (state.pin || get("channel") != null) return (state.pin = null), focusChannel(null), show();
    leaveView(el);
  }
  function zoom(clientX, factor) {
    const box = slider.getBoundingClientRect(), part = clamp((clientX - box.left - 34) / (box.width - 64), 0, 1);
    const [a, b] = state.range, size = clamp((b - a) * factor, Math.min(1, 4 / R), 1);
    const low = clamp(a + (b - a - size) * part, 0, 1 - size);
    state.range = [low, low + size], layout();
  }
  gestures(el, slider, here.hands);
  const digit = (c) => c < C && focusChannel(c === get("channel") ? null : c);
  keys(el, { ...here.keys, digit, "?": bottom.toggle, Escape: leave,
    ArrowUp: () => focusChannel((get("channel") ?? C) - 1), ArrowDown: () => focusChannel((get("channel") ?? -1) + 1),
    l: next("axis", AXES.map((x) => x[0])), f: next("scale", SCALES.map((x) => x[0])), d: swap,
    n: next("interpolation", ["nearest", "linear"]) });

  const recolour = () => { colours = lut(el, "diverging", blob("lut")), (state.drawn = ""), show(); };
  for (const name of ["axis", "sample", "channel", "scale", "interpolation"]) it.on(name, layout);
  it.on("decode", show), it.on("_exact", show), it.on("_lut", recolour), buildStage();
  fitted(it, el, { recolour, layout: (width) => { wide = width, layout(); } });
  it.until(...[show, settle, probe, announce].map((timer) => timer.stop));
  return it.end;
}

export default { render };

// The region inspector: masks over an image, as the sampler sees them, corrected by sliders and by hand.
// draw.js, rungs.js, masks.js, overlay.js and hand.js stand before it.

const MODES = ["inspect", "brush", "erase"], UNDO = 100, WIDE = 572, TALL = 572, SHELF = 288;
const HINTS = [[["B"], "brush"], [["E"], "erase"], [["[", "]"], "brush size"], [["Z"], "undo"]];
const MORE_HINTS = [[["\u21e7", "Z"], "redo"], [["\u2191", "\u2193"], "region"],
  [["Alt", "\u2191", "\u2193"], "its place"], [["\u2190", "\u2192"], "rung"], [["click"], "pins a pixel"],
  [["double click"], "default of a slider"], [["esc"], "leave"]];
const CURVES = { conflict: ["Conflict", "rms of opinion \u2212 fused"], weight: ["Weight", "mean share, grey: base"] };
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function render({ model, el }) {
  const it = traits(model), { get, blob, write, choose } = it, meta = get("_regions"), run = unpack(get("_run"), blob);
  const { R, S } = run, { size: [h, w], regions: all } = meta, kept = all.map((r) => r.kept), cat = (i) => i % 6;
  const index = new Map(all.map(({ name }, i) => [name, i])), sizes = all.map((r) => r.size);
  const order = () => get("order").map((name) => index.get(name)), at = () => index.get(get("focused"));
  const shown = () => new Set(get("shown").map((name) => index.get(name))), painting = () => get("mode") !== "inspect";
  const settings = () => { // by place: a name may be "__proto__"
    const own = new Map(Object.entries(get("settings")));
    return all.map(({ name }) => own.get(name));
  };
  const resize = sizes.map(([, H, W]) => resizer(H, W, h, w)), canvases = easel();
  const state = { over: null, version: 0, drawn: "", moved: new Set(), last: {}, labels: [] };
  let raw = [], fits = [], stood = settings(), cover, colours, cats, track = null, wide = 0, serial = 0, telling;
  const show = frame(draw), save = throttle(() => model.save_changes(), 50), settle = rest(rested, 160);
  const announce = rest(() => put(live, spoken()), 1000), set = (name, value) => (model.set(name, value), save());
  const late = rest(() => { state.unheard = serial > get("_answer").heard, show(); }, 3000);
  const here = voyage(it, run, { show, track: () => track });
  const plane = (i, s = get("sample")) => { // codes of one mask in the payload itself: painting changes them there
    const [count, H, W] = sizes[i], from = all[i].offset + (count > 1 ? s : 0) * H * W;
    return blob("masks").subarray(from, from + H * W);
  };

  // ---- masks on the latent
  const taken = () => (cover = coverageOf(fits, kept), state.version++, show(), settle());
  function refit(which) {
    for (const i of which) fits[i] = shaped(raw[i], h, w, stood[i]);
    taken();
  }
  const load = () => (raw = all.map((_, i) => resize[i](plane(i))), refit(all.keys()));
  function strokes(list) { telling = true, write({ _strokes: list }), telling = false; }
  function answered() { // Python's answer takes the place of ours, if it is of what stands here
    const { settings: of, heard } = get("_answer"), their = new Map(Object.entries(of)), size = h * w;
    if (heard >= serial && get("_strokes").length) strokes([]);
    serial = Math.max(serial, heard);
    if (heard < serial || hand.busy() || !all.every(({ name }, i) => same(their.get(name), stood[i]))) return;
    const floats = new Float32Array(blob("fits").slice().buffer), from = (i) => (i * S + get("sample")) * size;
    fits = fits.map((own, i) => corrected(own, floats.subarray(from(i), from(i) + size))), taken();
  }

  // ---- the bands, once
  const words = make("span", { class: "tk-words" }), live = make("div", { class: "tk-off", "aria-live": "polite" });
  const modes = segment("pointer", MODES.map((m) => [m, m]), choose("mode"));
  const grounds = segment("under the masks", meta.grounds.map((g) => [g, g]), choose("ground"));
  const pick = choice("sample", Array.from({ length: S }, (_, s) => run.samples[s] ?? s), choose("sample"));
  const channels = choice("channel", run.names, choose("channel")), picture = gallery(blob("image"));
  const head = make("div", { class: "tk-head" }, make("span", { class: "tk-title", text: "Regions" }), words,
    ...(S > 1 ? [pick.node] : []), channels.node, modes.node, ...(meta.grounds.length > 1 ? [grounds.node] : []));
  const over = make("canvas", { class: "tk-over tk-masks", width: 0 }), labels = make("div", { class: "tk-labels" });
  const stage = tile(w, h), warnings = make("div", { class: "tk-warnings" }), slider = railOf(run.planned - 1);
  stage.node.classList.add("tk-picture", "tk-ground"), stage.mark.remove(), stage.node.append(over, labels);
  stage.node.tabIndex = 0, stage.node.dataset.lmSuppressShortcuts = "true";
  const marks = pointerMarks(stage.node), seen = caption("What the sampler sees"), tiled = seenTiles(all, h, w);
  const left = make("div", { class: "tk-column tk-region-left" }, stage.node, seen.node, tiled.node);
  const heading = caption("Regions");
  const rows = regionList(all, { focus: (i) => write({ focused: all[i].name }), toggle, shift, turn, first: stood,
    reach: Math.max(8, Math.ceil(Math.min(h, w) / 6)) });
  const right = make("div", { class: "tk-column tk-region-right" }, heading.node, rows.node, warnings);
  const digits = all.length > 1 ? ["0", String(Math.min(9, all.length - 1))] : ["0"];
  const bottom = foot([[digits, "show or hide"], ...HINTS], MORE_HINTS, layout);
  if (R > 1) right.append(slider);
  el.classList.add("tk", "tk-view", "tk-inspector");
  el.replaceChildren(head, make("div", { class: "tk-stage" }, left, right), bottom.node, live);

  // ---- layout: after a change of size, sample, order or ground
  function layout() {
    if (wide < 100) return; // hidden, or folding: it is laid out when it shows
    const width = wide - 2 * parseFloat(getComputedStyle(el).paddingLeft), stacked = wide < 820;
    const room = stacked ? width : width - 20 - SHELF, across = Math.min(room, (TALL * w) / h), down = (across * h) / w;
    el.classList.toggle("tk-narrow", stacked), el.classList.toggle("tk-small", wide < 560);
    stage.node.style.width = `${across}px`, stage.node.style.height = `${down}px`;
    left.style.width = `${room}px`, right.style.width = `${stacked ? width : SHELF}px`;
    over.width = Math.round(across * devicePixelRatio), over.height = Math.round(down * devicePixelRatio);
    tiled.fit(room);
    modes.set(get("mode")), grounds.set(get("ground")), pick.set(get("sample")), channels.set(get("channel"));
    stage.node.classList.toggle("tk-painted", painting()), bottom.set(stacked), setWords();
    channels.node.hidden = run.C < 2 || !["latent", "rung"].includes(get("ground"));
    if (R > 1) buildRail(stacked ? width : SHELF);
    state.drawn = "", show(), rested(), settle();
  }
  function setWords() {
    const ground = get("ground"), [ih, iw] = ground === "image" ? meta.picture : [];
    const told = [ground && `on the ${ground}`, ih && `${ih} \u00d7 ${iw}`, `latent ${h} \u00d7 ${w}`].filter(Boolean);
    put(words, told.slice(wide < 820 ? -1 : 0).join(" \u00b7 ")), put(seen.note, `${h} \u00d7 ${w}, ${meta.whence}`);
    put(seen.second, "masks on the latent"), put(heading.second, all.length), put(heading.note, "drag to reorder");
  }
  function buildRail(width) {
    const s = get("sample"), across = scale.linear(0, run.planned - 1), u = run.rungs.map(across);
    const { names, ...curves } = meta.curves, group = (name) => (index.has(name) ? cat(index.get(name)) : "x");
    const plots = [{ title: "\u03c3", unit: "the schedule; drag anywhere", level: true, wish: 2, top: 26, bottom: 62,
      scale: levelScale(run.sigma, 0.12), lines: [{ values: run.sigma }] }];
    for (const [what, table] of Object.entries(curves)) {
      const values = (g) => table[g].map((row) => row[s] ?? NaN), last = (g) => values(g).findLast(Number.isFinite);
      const lines = names.map((name, g) => ({ name, cat: group(name), values: values(g), end: last(g) }));
      const most = Math.max(1e-9, ...lines.flatMap((l) => l.values).filter(Number.isFinite));
      const [title, unit] = CURVES[what], top = plots.at(-1).bottom + 42, to = scale.linear(0, 1.05 * most);
      plots.push({ title, unit, top, bottom: top + 64, wish: 3, lines, scale: to });
    }
    track = rail(slider, { width, left: 34, right: 48, u, range: [0, 1], plots, axisName: "step", letters: 7,
      ticks: ticks(0, run.planned - 1, 4).filter(Number.isInteger).map((v) => [across(v), format.count(v)]),
      minor: Array.from({ length: run.planned }, (_, k) => across(k)), focused: get("focused"),
      faults: run.faults.filter((f) => f[1] === s).map((f) => f[0]), end: run.stopped ? u.at(-1) : null,
      say: (k) => format.count(run.rungs[k]) });
  }

  // ---- one frame
  function draw() {
    if (!over.width || !colours) return;
    if (state.moved.size) refit([...state.moved]), state.moved.clear();
    const key = [state.version, here.k, get("sample"), get("channel"), get("ground"), get("mode")].join()
      + JSON.stringify([get("order"), get("shown"), get("focused"), stood]);
    if (key !== state.drawn) drawGround(), drawMasks(), drawSeen(), drawList(), track?.move(here.k), announce();
    state.drawn = key, drawPointer();
  }
  function drawGround() {
    const ground = get("ground"), s = get("sample"), c = get("channel"), key = [ground, s, c, here.k].join();
    if (state.last.ground === key) return;
    const lowest = run.sigma.reduce((best, v, k) => (v < run.sigma[best] ? k : best), 0);
    const k = ground === "latent" ? lowest : here.k;
    const photo = ground === "image" && meta.image[Math.min(s, meta.image.length - 1)];
    state.last.ground = key, stage.node.classList.toggle("tk-plain", !ground);
    slider.setAttribute("aria-valuenow", run.rungs[here.k]), slider.setAttribute("aria-valuetext", here.spoken());
    stage.canvas.classList.toggle("tk-photo", photo && Math.max(photo[2], photo[3]) > 96);
    picture(stage.canvas, photo ? [[0, 0, ...photo]] : []);
    if (photo || !ground) return;
    const [lo, hi] = ["lo", "hi"].map((end) => run.value(`latent.${end}`, k, s, c));
    stage.canvas.width = w, stage.canvas.height = h;
    paint(stage.canvas, run.plane("latent", k, s, c), tableOf(colours, lo, hi, run.limit("latent", k, s), run.top));
  }
  function drawMasks() {
    const layers = order().reverse().filter((i) => shown().has(i)).map((i) => {
      const focused = i === at(), base = { name: i, cat: cat(i), focused }; // a mask that is painted is shown as it is
      return painting() && focused ? { ...base, plane: plane(i), h: sizes[i][1], w: sizes[i][2], unit: 255 }
        : { ...base, plane: fits[i], h, w, unit: 1 };
    });
    drawOverlay(over, { at: canvases, colours: cats, gaps: cover.hole ? cover.gaps : null, size: [h, w], layers });
  }
  function drawSeen() {
    const place = order(), empty = all.filter((_, i) => !fits[i].some((v) => v > 0)).map((r) => r.name);
    const said = complaints(cover, place, empty);
    tiled.set(place, fits, cover, cats);
    if (!same(said, state.last.said)) warnings.replaceChildren(...said.map(([bold, text]) => warning(bold, text)));
    state.last.said = said;
  }
  const drawList = () => rows.set({ order: order(), shown: shown(), at: at(), settings: stood });

  // ---- what is under the pointer
  const extent = () => [stage.node.style.height, stage.node.style.width].map(parseFloat);
  function drawPointer() {
    const pin = get("pixel"), place = state.over ?? (pin.length ? [(pin[0] + 0.5) / h, (pin[1] + 0.5) / w] : null);
    if (!place) return marks.set({}), bottom.say(here.tip || notice(), "tk-notice");
    const [y, x] = [h, w].map((n, i) => clamp(Math.floor(place[i] * n), 0, n - 1)), [tall, across] = extent();
    const { sum, w: [left, ...each] } = sharesOf(all.map((r, i) => fits[i][y * w + x] * r.factor), kept);
    const told = order().map((i, n) => `${n}: ${format.fixed(each[i], 2)}`).join(" ");
    const entries = order().filter((i) => each[i] > 5e-3).map((i) => [all[i].name, cat(i), each[i]]);
    const round = state.over && painting() ? (get("brush") / w) * across : 0;
    marks.set({ spot: [place[0] * tall, place[1] * across], size: [tall, across], round, labels: state.labels,
      card: painting() ? null : [entries, left, sum] });
    bottom.say(`y ${y} x ${x} \u2192 ${told} rest ${format.fixed(left, 2)}`, "");
  }
  function notice() {
    const own = painting() && `painting ${get("focused")} at ${sizes[at()].slice(1).join(" \u00d7 ")}`;
    const kernel = get("_page") ? hand.strokes() && "painted in this page alone: nothing is kept"
      : state.unheard && "Python has not answered: what is painted is not kept yet";
    return [own, kernel, run.notice].filter(Boolean).join(" \u00b7 ");
  }
  const spoken = () => {
    const weights = get("pixel").length ? bottom.node.lastChild.textContent : "";
    return [`region ${get("focused")}`, ...(state.last.said ?? []).flat(), weights].filter(Boolean).join(", ");
  };
  function rested() { // names go where the regions went, once nothing moves
    if (!over.width) return;
    const spots = order().map((i, n) => [i, n, shown().has(i) && heart(fits[i], h, w)]).filter(([, , spot]) => spot);
    const [tall, across] = extent(), places = spots.map(([, , [y, x]]) => [y * tall, x * across]);
    labels.replaceChildren(...spots.map(([i, n]) => make("span", { class: `tk-label tk-cat${cat(i)}` },
      make("i", { class: "tk-number", text: n }), make("span", { text: all[i].name }))));
    state.labels = apart([...labels.children], places, across, tall), show();
  }

  // ---- what one can do
  function turn(i, name, value) {
    const now = stood.map((own, j) => [all[j].name, i === j ? { ...own, [name]: value } : own]);
    set("settings", Object.fromEntries(now));
  }
  function toggle(i) { write({ shown: all.filter((_, j) => shown().has(j) !== (i === j)).map((r) => r.name) }); }
  function shift(from, to) {
    const names = get("order").slice();
    names.splice(clamp(to, 0, names.length - 1), 0, ...names.splice(from, 1)), write({ order: names });
  }
  const walk = (n) => () => write({ focused: get("order")[clamp(order().indexOf(at()) + n, 0, all.length - 1)] });
  const brushed = (v) => set("brush", clamp(+v.toPrecision(3), 0.25, Math.max(h, w)));
  const by = (factor) => () => painting() && brushed(get("brush") * factor);
  const mode = (name) => () => write({ mode: get("mode") === name ? "inspect" : name });
  function leave() {
    if (painting()) return write({ mode: "inspect" });
    if (bottom.close()) return;
    if (get("pixel").length) return write({ pixel: [] });
    leaveView(el);
  }
  const hand = painter({ size: [h, w], most: UNDO,
    mask: (i, s = get("sample")) =>
      ({ codes: plane(i, s), rows: sizes[i][1], columns: sizes[i][2], sample: sizes[i][0] > 1 ? s : 0 }),
    touched: (i, top, bottom) => (raw[i] = resize[i](plane(i), top, bottom), state.moved.add(i), show()),
    done(i, sample, box, codes) { // what Python has not heard yet goes again with the next one: none is lost
      const { heard } = get("_answer"), waiting = get("_strokes").filter((one) => one.serial > heard);
      serial = Math.max(serial, heard, ...waiting.map((one) => one.serial)) + 1;
      strokes(get("_page") ? [] : [...waiting, { serial, region: i, sample, box, codes: textOf(codes) }]), late();
    } });
  overPicture(stage.node, { size: [h, w], hand, over: (place) => { state.over = place, show(); },
    brush: () => painting() && { i: at(), radius: get("brush") / 2, value: get("mode") === "brush" ? 255 : 0 },
    pick: (place, always) => write({ pixel: !always && same(place, get("pixel")) ? [] : place }),
    pinned: () => (get("pixel").length ? get("pixel") : [h >> 1, w >> 1]) });
  el.addEventListener("keydown", (event) => {
    const hop = event.altKey && { ArrowUp: -1, ArrowDown: 1 }[event.key], from = order().indexOf(at());
    if (hop) shift(from, from + hop), event.preventDefault(), event.stopPropagation();
  });
  for (const node of [left, rows.node]) node.addEventListener("mousedown", (e) => e.stopPropagation()); // keep focus
  if (R > 1) gestures(el, slider, here.hands);
  keys(el, { ...(R > 1 ? here.keys : {}), ArrowUp: walk(-1), ArrowDown: walk(1), b: mode("brush"), e: mode("erase"),
    z: hand.undo, "Shift+z": hand.redo, "[": by(0.8), "]": by(1.25), "?": bottom.toggle, Escape: leave,
    digit: (n) => n < all.length && toggle(order()[n]) });

  function recolour() {
    colours = lut(el, "diverging"), cats = maskColours(el), (state.drawn = state.last.ground = ""), show();
  }
  it.on("settings", () => {
    const now = settings();
    all.forEach((_, i) => same(stood[i], now[i]) || state.moved.add(i)), (stood = now), show();
  });
  it.on("_fits", answered), it.on("_answer", answered), it.on("_masks", () => (hand.forget(), load()));
  it.on("_strokes", () => telling || load()), it.on("sample", () => (load(), answered(), layout()));
  for (const name of ["order", "shown", "focused", "mode", "ground", "channel"]) it.on(name, layout);
  it.on("brush", show), it.on("pixel", () => (show(), announce())), load(), answered();
  fitted(it, el, { recolour, layout: (width) => { wide = width, layout(); } });
  it.until(...[show, settle, save, announce, late].map((timer) => timer.stop));
  return it.end;
}

export default { render };

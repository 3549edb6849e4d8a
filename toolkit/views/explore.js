// The schedule explorer: several schedules over each other, sliders for what their formulas leave open, and the line
// of Python that makes the curve. draw.js, rungs.js, formulas.js and shelf.js stand before it.

const AXES = [["log_sigma", "log \u03c3"], ["sigma", "\u03c3"]], READ = 7; // rows in the read-out
const HINTS = [[["\u2191", "\u2193"], "schedule"], [["\u2190", "\u2192"], "step"], [["0", "9"], "show or hide"],
  [["C"], "copy the line"]];
const MORE_HINTS = [[["\u21e7"], "by ten"], [["PgUp", "PgDn"], "a tenth"], [["Home", "End"], "ends"], [["L"], "axis"],
  [["double click"], "default of a slider"], [["esc"], "leave"]];
const TRAITS = ["focused", "shown", "options", "steps", "step", "axis"];

function render({ model, el }) {
  const it = traits(model), { get, blob } = it, slots = {};
  const levels = () => levelsOf(get("_levels"), new Float32Array(blob("table").slice().buffer));
  const entries = get("_schedules"), entry = Object.fromEntries(entries.map((e) => [e.name, e]));
  const state = { tip: null, drawn: "", dials: "" };
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  let wide = 0, width = 0, telling = false, L = levels(), cache = {}, curves = {}, plots = [], dials = [], held, svg;
  const show = frame(draw), settle = rest(describe, 180), announce = rest(() => put(live, spoken()), 1000);
  const pull = (name) => (state[name] = structuredClone(get(name)));
  const tell = throttle(() => {
    telling = true; // our own changes come back one by one, while the others are not written yet
    for (const name of TRAITS) if (!same(get(name), state[name])) model.set(name, structuredClone(state[name]));
    telling = false, model.save_changes();
  }, 50);
  const change = (values) => (Object.assign(state, values), show(), tell());
  const own = (name) => ({ ...entry[name].defaults, ...state.options[name] });
  const last = () => Math.max(1, ...Object.values(curves).map((c) => c.sigma.length - 1));
  const go = (k) => change({ step: clamp(k, 0, last()) }), hop = (n) => () => go(state.step + n);

  // ---- what one can do
  function turn(option, value) { // a value that is the default leaves no trace
    const name = state.focused, all = structuredClone(state.options), plain = entry[name].defaults[option];
    all[name] = { ...all[name], [option]: value };
    if (value === plain) delete all[name][option];
    if (!Object.keys(all[name]).length) delete all[name];
    change({ options: all });
  }
  const others = (name) => state.shown.filter((other) => other !== name);
  const toggle = (name) => change({ shown: state.shown.includes(name) ? others(name) : [...state.shown, name] });
  const focusOn = (name) => change({ focused: name, shown: [...new Set([...state.shown, name])] });
  function walk(n) {
    const open = entries.map((e) => e.name).filter((name) => state.shown.includes(name) || name === state.focused);
    focusOn(open[clamp(open.indexOf(state.focused) + n, 0, open.length - 1)]);
  }
  const line = () => lineOf(L, state.focused, state.steps, state.options[state.focused] ?? {});
  const relabel = rest(() => put(copied, "Copy"), 1500);
  const copy = () => void copyText(line(), code).then((done) => {
    put(copied, done ? "Copied" : "Ctrl C"), put(live, done ? "copied" : "selected, press Ctrl C"), relabel();
  });
  const leave = () => bottom.close() || leaveView(el);

  // ---- the bands, once
  const button = (name, label, click, o) => make("button", { type: "button", class: name, click, ...o }, label);
  const heading = (text, ...more) => make("div", { class: "tk-caption" }, make("b", { text }), ...more);
  const axes = segment("axis", AXES, (axis) => change({ axis }));
  const live = make("div", { class: "tk-off", "aria-live": "polite" }), table = make("table");
  const words = make("span", { class: "tk-words" }), title = make("span", { class: "tk-title", text: "Schedules" });
  const host = make("div", { class: "tk-rail tk-curves", role: "slider", tabindex: 0, "aria-label": "step",
    "aria-valuemin": 0 });
  const said = make("div", { class: "tk-readout", "aria-hidden": "true" }), count = make("span");
  const list = make("div", { class: "tk-list", role: "list", wheel: (e) => e.stopPropagation() }); // scrolls itself
  const box = make("div", { class: "tk-dials" });
  const code = make("code"), note = make("span", { class: "tk-note" }), copied = button("tk-copy", "Copy", copy);
  const well = make("div", { class: "tk-well", mousedown: (e) => e.stopPropagation() }, code, note, copied);
  const shelf = make("div", { class: "tk-shelf" });
  const bottom = foot(HINTS, MORE_HINTS, layout);
  const rows = entries.map(({ name }, i) => scheduleRow(name, i, toggle, focusOn));
  const seen = looks(blob("look"), L.path, go);
  shelf.append(heading("Schedules", count, ...(entries.length > 9 ? [sieve(rows)] : [])), list);
  shelf.append(heading("This curve in Python"), well);
  host.append(said), list.append(...rows.map((row) => row.node)), el.classList.add("tk", "tk-view", "tk-explorer");
  el.replaceChildren(make("div", { class: "tk-head" }, title, words, axes.node),
    make("div", { class: "tk-body" }, make("div", { class: "tk-left" }, host, seen.node), shelf),
    bottom.node, make("div", { class: "tk-off" }, table), live); // a table itself is never narrower than its words

  // ---- layout: after a change of size, or of what is open
  function layout() {
    const narrow = wide < 820;
    el.classList.toggle("tk-narrow", narrow), el.classList.toggle("tk-small", wide < 560);
    put(words, L.words.join(" \u00b7 ")), bottom.set(narrow);
    width = host.clientWidth, state.drawn = "", show();
  }

  // ---- one frame
  function draw() {
    if (!wide || !host.clientWidth) return; // hidden: it is drawn when it shows
    const key = JSON.stringify([wide, state.focused, state.shown, state.options, state.steps, state.axis]);
    if (key !== state.drawn) compute(), drawList(), drawDials(), buildPlots(), drawLine();
    state.drawn = key, move();
  }
  const cat = (name) => (state.shown.length > 6 ? "x" : slots[name] ?? "x"); // past six all are grey
  const kind = (name) => `tk-cat${cat(name)}${name === state.focused ? " tk-focused" : ""}`;

  function compute() {
    for (const name in slots) if (!state.shown.includes(name)) delete slots[name]; // a colour stays while it is shown
    const free = () => [0, 1, 2, 3, 4, 5].find((c) => !Object.values(slots).includes(c));
    for (const name of state.shown) slots[name] ??= free();
    const wanted = [...new Set([...state.shown, state.focused])];
    for (const name of wanted) { // again only where it moved
      const key = JSON.stringify([state.steps, state.options[name]]);
      if (cache[name]?.key !== key) cache[name] = { key, curve: curveOf(L, entry[name], state.steps, own(name)) };
    }
    curves = Object.fromEntries(wanted.map((name) => [name, cache[name].curve]).filter(([, curve]) => curve));
    state.step = clamp(state.step, 0, last());
  }

  function drawList() {
    const key = JSON.stringify([state.focused, state.shown]), again = key !== state.listed;
    put(count, `${state.shown.length} of ${entries.length} shown`), axes.set(state.axis);
    for (const { name, eye, pick, fact, swatch, node } of rows) {
      const on = state.shown.includes(name), focused = name === state.focused, options = own(name);
      const open = entry[name].sliders.filter((s) => !ENDS.includes(s.name)).slice(0, 2);
      put(fact, open.map((s) => `${s.label} ${format.tick(options[s.name])}`).join(" \u00b7 "));
      if (!again) continue;
      node.classList.toggle("tk-on", on), node.classList.toggle("tk-open", focused);
      eye.setAttribute("aria-checked", String(on)), pick.setAttribute("aria-expanded", String(focused));
      swatch.setAttribute("class", kind(name)), swatch.replaceChildren();
      shape(swatch, "path", { class: `tk-line ${kind(name)} ${on ? "" : "tk-joined"}`, d: "M0 6H28" });
      if (on) shape(swatch, "path", { class: "tk-mark-path", d: mark(cat(name), 14, 6, focused ? 4 : 3.2) });
    }
    state.listed = key;
  }

  function drawDials() { // built again only for another schedule, so that a slider in the hand stays the same
    const name = state.focused, node = rows.find((row) => row.name === name).node;
    if (state.dials !== name) {
      const steps = { name: "steps", label: "steps", low: 2, high: 100, hop: 1, value: 20 };
      const free = entry[name].sliders.map((s) => dial(s, (v) => turn(s.name, v)));
      dials = [dial(steps, (n) => change({ steps: n })), ...free], state.dials = name;
      box.replaceChildren(...dials.map((d) => d.node)), node.after(box);
      const top = node.offsetTop - list.offsetTop, room = list.clientHeight; // into sight, within the list alone
      if (top < list.scrollTop || top + box.offsetHeight + 30 > list.scrollTop + room) list.scrollTop = top;
    }
    const now = { steps: state.steps, ...own(name) }, sigma = curves[name]?.sigma;
    for (const d of dials) d.set(now[d.name]);
    const few = sigma?.slice(0, 3).map((v) => +v.toPrecision(4)).join(" ");
    put(note, sigma ? `\u03c3 ${few} \u2026 ${sigma.length} levels` : "no levels with these options");
  }

  const drawLine = () => // where it may be broken for the eye; the text is one line
    code.replaceChildren(...line().split(/(?<=\()/).flatMap((part) => [part, make("wbr")]));

  function buildPlots() {
    const stacked = width < 480, half = (width - 20) / 2, right = width - 12, old = svg;
    const names = state.shown.filter((name) => curves[name]).sort((a) => (a === state.focused ? 1 : 0));
    const all = (what) => names.flatMap((name) => curves[name][what]).filter(Number.isFinite);
    const log = state.axis === "log_sigma", low = stacked ? 542 : 346, top = Math.max(0.1, ...all("size")) * 1.06;
    const floor = below(Math.min(L.max, ...all("sigma").filter((v) => v > 0))), reach = [floor, L.max, ...all("sigma")];
    const snr = reach.map((v) => logSnr(v, L.path)).filter(Number.isFinite);
    plots = [{ what: "sigma", title: "Noise level \u03c3", unit: "at each step", left: 36, right, top: 34, bottom: 270,
      wish: 4, level: log, scale: log ? levelScale([...reach, 0], 0.1) : scale.linear(0, Math.max(...reach)) },
    { what: "snr", title: "log-SNR", unit: "at each step", left: 36, right: stacked ? right : half, top: 346,
      bottom: 466, wish: 3, scale: valueScale([...snr, ...all("snr")]) },
    { what: "size", title: "Step size", unit: "change of log-SNR in it", left: stacked ? 36 : width - half + 36, right,
      top: low, bottom: low + 120, wish: 3, scale: scale.linear(0, top) }];
    svg = shape(host, "svg", { width, height: low + 146, "aria-hidden": "true" });
    for (const plot of plots) {
      panel(svg, plot, last());
      for (const name of names) {
        const focused = name === state.focused, marks = focused || plot.what === "sigma";
        const { kept, [plot.what]: values } = curves[name];
        series(svg, plot, { name, values, cat: cat(name), focused, marks, kept });
      }
      plot.hair = shape(svg, "line", { class: "tk-hair", y1: plot.top - 8, y2: plot.bottom + 5 });
      const dot = (name) => shape(svg, "circle", { class: `tk-value ${kind(name)}`, r: 3.4 });
      plot.dots = names.map((name) => ({ name, node: dot(name) }));
    }
    const height = 30 + 18 * Math.min(names.length, READ + 1);
    const [x, y] = corner(plots[0], names.map((name) => curves[name].sigma), 196, height);
    said.style.left = `${x}px`, said.style.top = `${y}px`, old?.remove();
  }

  function move() {
    const k = state.step, here = (what, name) => curves[name]?.[what][k];
    for (const { what, px, y, hair, dots } of plots) {
      hair.setAttribute("x1", px(k)), hair.setAttribute("x2", px(k));
      for (const { name, node } of dots) {
        const gone = !Number.isFinite(here(what, name));
        node.classList.toggle("tk-gone", gone);
        if (!gone) node.setAttribute("cx", px(k)), node.setAttribute("cy", y(here(what, name)));
      }
    }
    const there = plots[0].dots.map((dot) => dot.name).filter((name) => here("sigma", name) != null);
    there.sort((a, b) => here("sigma", b) - here("sigma", a));
    const level = (name) => `\u03c3 ${format.sigma(here("sigma", name))}`;
    const row = (name) => ({ name, cat: cat(name), kind: kind(name), text: level(name) });
    readout(said, `step ${k} of ${last()}`, there.map(row), READ);
    const looked = state.shown.filter((name) => curves[name]).sort((a) => (a === state.focused ? -1 : 0));
    seen.set(looked.map((name) => ({ name, kind: kind(name), sigma: curves[name].sigma })), width, k);
    host.setAttribute("aria-valuemax", last()), host.setAttribute("aria-valuenow", k);
    host.setAttribute("aria-valuetext", spoken()), drawValue(), settle(), announce();
  }

  function drawValue() {
    const has = (name) => curves[name]?.sigma.length ?? 0;
    const odd = state.shown.find((name) => has(name) !== state.steps + 1);
    const k = state.tip ?? state.step, c = curves[state.focused], said = odd && state.tip == null;
    const number = (what) => (c[what][k] == null ? "none" : format.logSnr(c[what][k]));
    const level = c?.sigma[k] == null ? "" : `step ${k}  \u03c3 ${format.sigma(c.sigma[k])}  log-SNR ${number("snr")}`;
    const notice = `${odd} gives ${has(odd) || "no"} levels here, not ${state.steps + 1}`;
    said ? bottom.say(notice, "tk-notice") : bottom.say(level, "");
  }
  const spoken = () => {
    const c = curves[state.focused], k = state.step, level = c?.sigma[k];
    if (level == null) return `step ${k}, no level of ${state.focused}`;
    const words = `sigma ${+level.toPrecision(4)}, log-SNR ${format.spoken(c.snr[k])}`;
    return `${state.focused}, step ${k} of ${c.sigma.length - 1}, ${words}`;
  };
  function describe() { // what only a screen reader needs waits until the thumb rests
    const row = (...cells) => make("tr", {}, ...cells.map((text) => make("td", { text })));
    const level = (c) => [`sigma ${c.sigma[state.step] ?? "none"}`, `log-SNR ${format.spoken(c.snr[state.step])}`];
    const every = Object.entries(curves).map(([name, c]) => row(name, ...level(c)));
    table.replaceChildren(row("step", state.step), ...every);
  }

  // ---- hands
  const within = (event) => svg && (held = panelAt(svg, plots, event)); // where it went down keeps a pointer
  const stepAt = (x) => (held ? clamp(held.step(x - svg.getBoundingClientRect().left), 0, last()) : 0);
  host.addEventListener("pointerdown", within), host.addEventListener("pointermove", (e) => e.buttons || within(e));
  gestures(el, host, { to: (x) => go(stepAt(x)), hop: (n) => hop(n)(), zoom() {}, whole() {},
    over: (x) => { state.tip = x == null ? null : stepAt(x), show(); } });
  const tenth = (sign) => () => go(state.step + sign * Math.max(1, Math.round(last() / 10)));
  keys(el, { ArrowLeft: hop(-1), ArrowRight: hop(1), "Shift+ArrowLeft": hop(-10), "Shift+ArrowRight": hop(10),
    PageUp: tenth(-1), PageDown: tenth(1), Home: () => go(0), End: () => go(last()), "?": bottom.toggle, Escape: leave,
    ArrowUp: () => walk(-1), ArrowDown: () => walk(1), digit: (i) => i < entries.length && toggle(entries[i].name),
    c: copy, l: () => change({ axis: state.axis === "sigma" ? "log_sigma" : "sigma" }) });
  el.addEventListener("keydown", (e) => e.key === "Escape" && e.target.matches("input") && host.focus());

  const hear = (name) => () => telling || same(get(name), state[name]) || (pull(name), show());
  for (const name of TRAITS) pull(name), it.on(name, hear(name));
  it.on("_levels", () => { L = levels(), cache = {}, state.drawn = "", show(); });
  fitted(it, el, { recolour: show, layout: (now) => now !== wide && ((wide = now), layout()) });
  it.until(...[show, settle, tell, announce, relabel].map((timer) => timer.stop));
  return it.end;
}

export default { render };

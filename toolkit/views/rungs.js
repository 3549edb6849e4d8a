// What all views of a run's rungs share: the traits, where one is, how one moves, and the foot. draw.js stands before.

/** The traits of a view: read, write, and listeners that end with it. */
function traits(model) {
  const get = (name) => model.get(name), ends = [];
  const write = (values) => { for (const name in values) model.set(name, values[name]); model.save_changes(); };
  return {
    get, write,
    blob: (name) => asBytes(get(`_${name}`)),
    choose: (name) => (value) => write({ [name]: value }),
    next: (name, values) => () => write({ [name]: values[(values.indexOf(get(name)) + 1) % values.length] }),
    on(name, fn) { model.on(`change:${name}`, fn), ends.push(() => model.off(`change:${name}`, fn)); },
    until: (...more) => ends.push(...more),
    end: () => ends.forEach((end) => end()),
  };
}

/** Keys at the left of the foot, all of them after `?`, and the value at its right. `redo` lays the view out again. */
function foot(short, more, redo) {
  const list = make("div", { class: "tk-keys" }), value = make("div");
  let open = false;
  const toggle = () => { open = !open, redo(); };
  return {
    node: make("div", { class: "tk-foot" }, list, value), toggle,
    say(text, kind) { value.className = `tk-value-text ${kind}`, put(value, text); },
    set(narrow, none = narrow) {
      const close = hints([[["?"], open ? "close" : narrow ? "keys" : "all keys"]]);
      list.replaceChildren(...hints(open ? [...short, ...more] : none ? [] : short),
        make("button", { type: "button", "aria-expanded": String(open), click: toggle }, ...close));
    },
    close: () => open && (toggle(), true), // true: there was something to close
  };
}

/** The slider that a rail is drawn into. */
const railOf = (last) => make("div", { class: "tk-rail", role: "slider", tabindex: 0, "aria-label": "rung",
  "aria-valuemin": 0, "aria-valuemax": last });

/** The rung that one is at, told to Python; the player; the keys that move; what drags and hovers over a rail do.
 *  `show` asks for a frame; `track` gives the rail, if there is one; `moved` follows every move. */
function voyage(it, run, { show, track = () => null, moved = () => {}, zoom = () => {}, whole = () => {} }) {
  const { R } = run, tenth = Math.max(1, Math.round(R / 10));
  const tell = throttle(() => it.write({ rung: run.rungs[me.k], sigma: run.sigma[me.k] }), 50);
  const go = (k) => { me.k = clamp(k, 0, R - 1), show(), tell(), moved(); };
  const hop = (n) => () => (play.stop(), go(me.k + n));
  const play = player((n) => go(me.k + n), (n) => me.k === (n > 0 ? R - 1 : 0));
  const turn = (n) => () => R > 1 && play.toggle(n);
  const me = {
    k: run.nearest(it.get("rung")), tip: "", go, play,
    keys: { ArrowLeft: hop(-1), ArrowRight: hop(1), "Shift+ArrowLeft": hop(-10), "Shift+ArrowRight": hop(10),
      PageUp: hop(-tenth), PageDown: hop(tenth), Home: hop(-R), End: hop(R), " ": turn(1), "Shift+ ": turn(-1) },
    hands: { zoom, whole, hop: (n) => hop(n)(),
      to: (x) => track() && (play.stop(), go(track().at(x))),
      over(x) {
        const k = x == null || !track() ? null : track().at(x);
        me.tip = k == null ? "" : `rung ${run.rungs[k]}  \u03c3 ${format.sigma(run.sigma[k])}`, show();
      } },
    spoken: () => `rung ${run.rungs[me.k]} of ${run.planned - 1}, sigma ${+run.sigma[me.k].toPrecision(4)}`
      + (run.log_snr ? `, log-SNR ${format.spoken(run.log_snr[me.k])}` : ""),
  };
  it.on("rung", () => { const k = run.nearest(it.get("rung")); if (k !== me.k) (me.k = k), show(); });
  it.until(play.stop, tell.stop);
  return me;
}

/** Calls `paint(true)` when the theme changes, and `layout` for every width that the view has. */
function fitted(it, el, { recolour, layout }) {
  let wide = 0;
  const size = new ResizeObserver(() => {
    const first = !wide;
    wide = el.clientWidth;
    if (wide) theme(el), first && recolour(), layout(wide);
  });
  size.observe(el);
  it.until(onTheme(() => requestAnimationFrame(() => wide && (theme(el), recolour()))), () => size.disconnect());
}

/** Esc gives the focus back to the cell. */
const leaveView = (el) => { document.activeElement.blur(), el.closest(".jp-Cell")?.focus(); };

// Two runs at one level: what the comparer shows of them, without a picture. draw.js stands before it.

const BETWEEN = "\u2013";

/** The payloads of several runs, from bytes that lie one after the other; and the tables of each two of them. */
function unpackRuns({ runs, sizes, tables }, blob) {
  const piece = (name, i) => {
    const from = sizes[name].slice(0, i).reduce((sum, n) => sum + n, 0);
    return blob(name.slice(1)).subarray(from, from + (sizes[name][i] ?? 0));
  };
  const each = runs.map((meta, i) => ({ ...unpack(meta, (name) => piece(`_${name}`, i)), i,
    rest: { latent: piece("_fine", 2 * i), denoised: piece("_fine", 2 * i + 1) },
    picture: gallery(piece("_pictures", i)) }));
  const bits = runs[0].top < 254 ? 6 : sizes._fine.length ? 16 : 8;
  return { runs: each, table: tablesOf(blob("tables"), tables), bits };
}

/** A and B of which one is focused: `of(name)` reads the view's a, b, focused, match and sample. */
function meeting(runs, table, of) {
  const { S, C, H, W } = runs[0];
  const me = {
    pair: () => [runs[of("a")], runs[of("b")]],
    at: () => (of("focused") === "A" ? 0 : 1),
    now: () => me.pair()[me.at()],
    other: () => me.pair()[1 - me.at()],
    top: () => (me.pair().every((run) => run.codes.denoised.length) ? "denoised" : "latent"), // what is shown large

    /** Where rung k of run p lies along run q: its two places there and the share of the second; null for nowhere. */
    met(name, k, p = me.now(), q = me.other(), match = of("match")) {
      const [low, high, share] = ["low", "high", "share"].map((what) => table[`${p.i}-${q.i}.${name}.${what}`]?.[k]);
      if (!(low >= 0)) return null;
      if (match === "interpolated") return { low, high, share };
      return share > 0.5 ? { low: high, high, share: 0 } : { low, high: low, share: 0 };
    },

    /** A number of `diagnostics.difference` at rung k of the focused run. */
    figure: (name, what, k) =>
      table[`${me.now().i}-${me.other().i}.${name}.${of("match")}.${what}`]?.[k * S + of("sample")] ?? NaN,
    std: (k) => table[`${me.now().i}.std`][k * S + of("sample")],

    /** The colour limit of A and B, and that of the difference. */
    limit(name, k) {
      const s = of("sample"), place = me.met(name, k), far = place ? me.other().limit(name, place.low, s) : 0;
      return Math.max(me.now().limit(name, k, s), far);
    },
    reach: (name, k) => { const v = me.figure(name, "quantile", k); return v > 1e-15 ? v : 1; },

    /** Of one channel: [values of A, of B, A - B], null where there is no such level; and what may be rounding. */
    planes(name, k, c) {
      const s = of("sample"), place = me.met(name, k), [now, other] = [me.now(), me.other()];
      if (!now.codes[name].length) return { values: [null, null, null], off: 0 };
      const add = (out, run, row, weight) => addCodes(out, run.plane(name, row, s, c), ["lo", "hi"].map((end) =>
        run.value(`${name}.${end}`, row, s, c)), run.top, weight, run.rest[name], ((row * S + s) * C + c) * H * W);
      const own = new Float64Array(H * W), theirs = place && new Float64Array(H * W);
      let off = add(own, now, k, 1);
      if (place) off += add(theirs, other, place.low, 1 - place.share);
      if (place?.share) off += add(theirs, other, place.high, place.share);
      const [a, b] = me.at() ? [theirs, own] : [own, theirs], gap = place && new Float64Array(H * W);
      for (let i = 0; gap && i < gap.length; i++) {
        const d = a[i] - b[i];
        gap[i] = d < off && d > -off ? 0 : d; // rounding is not drawn as data
      }
      return { values: [a, b, gap], off };
    },

    /** Rung, model calls and std of either run, in words; a rung between two others counts in parts. */
    facts(k) {
      const place = me.met("latent", k), [now, other] = [me.now(), me.other()];
      const calls = (v) => (v == null ? BETWEEN : format.count(v));
      const own = [format.count(now.rungs[k]), calls(now.nfe?.[k]), format.fixed(me.std(k))];
      if (!place) return me.at() ? [[BETWEEN, BETWEEN, BETWEEN], own] : [own, [BETWEEN, BETWEEN, BETWEEN]];
      const { low, high, share } = place, rung = other.rungs[low] + share * (other.rungs[high] - other.rungs[low]);
      const spent = other.nfe && Math.max(other.nfe[low], share ? other.nfe[high] : 0);
      const std = me.figure("latent", "std_b", k); // tables are of the focused run against the other
      const far = [format.fixed(rung, share ? 1 : 0), calls(spent), format.fixed(std)];
      return me.at() ? [far, own] : [own, far];
    },

    /** Where run i of the two is, for its caption. */
    where(i, k) {
      const run = me.pair()[i], place = i === me.at() ? { low: k, share: 0 } : me.met(me.top(), k);
      if (!place) return "no such level";
      const [low, high] = [place.low, place.high ?? place.low].map((j) => format.count(run.rungs[j]));
      return place.share ? `between ${low} and ${high}` : `rung ${low}`;
    },

    /** What stands under the tiles: what is large, the channels below it, and the scales. */
    legend(k, large, pages, told) {
      const most = `, differences to \u00b1${format.limit(me.reach("latent", k))}`;
      const below = `below: latent, ${pages}${told && me.top() !== "latent" ? most : ""}`;
      return [`top: ${large}`, ...(C > 1 ? [below] : []), "one scale for A and B"].join(" \u00b7 ");
    },

    /** What the foot says of the other run. */
    notice(k) {
      const place = me.met(me.top(), k), run = me.other(), who = "BA"[me.at()], sigma = me.now().sigma[k];
      const [low, high] = place ? [place.low, place.high].map((j) => run.sigma[j]) : [];
      if (!place) return `${who} has no such level, and nothing is extrapolated`;
      const none = `${who} has no rung here: `, ends = [low, high].map(format.sigma);
      if (place.share) return `${none}interpolated in log \u03c3 between ${ends.join(" and ")}`;
      return Math.abs(low - sigma) > 2e-6 * sigma ? `${none}its nearest is \u03c3 ${ends[0]}` : "";
    },

    /** The rung of another run that is nearest to rung k of the focused one. */
    nearest(run, k) {
      const gaps = run.sigma.map((v) => Math.abs(v - me.now().sigma[k]));
      return gaps.indexOf(Math.min(...gaps));
    },

    /** Two rows of ticks on a rail, with links between the nearest rungs, from the run that has fewer. */
    ticks(svg, px, right, across, rows, mostLinks) {
      const two = me.pair(), x = (run, k) => px(across(run.sigma[k])), [few, many] = [...two].sort((p, q) => p.R - q.R);
      const near = few.R > mostLinks ? [] : few.rungs.map((_, k) => me.met("latent", k, few, many, "nearest"));
      const links = near.map((place, k) => place && [x(few, k), x(many, place.low)]).filter(Boolean);
      tickRows(svg, px, right, two.map((run, i) => ({ name: "AB"[i], cat: i, y: rows[i],
        xs: run.sigma.map((_, k) => x(run, k)),
        faults: run.faults.filter((f) => f[1] === of("sample")).map((f) => x(run, f[0])) })),
      few === two[0] ? links : links.map(([x0, x1]) => [x1, x0]));
    },
  };
  return me;
}

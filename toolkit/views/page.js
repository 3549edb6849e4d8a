// A page without a kernel: the payload, a model that only holds values, and the view.

async function unpackPage() {
  const text = (id) => document.getElementById(id).textContent;
  const packed = Uint8Array.from(atob(text("payload")), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const { sizes, state, differences } = JSON.parse(text("state"));
  let start = 0;
  for (const [name, size] of sizes) state[name] = bytes.subarray(start, (start += size));
  for (const [name, stride] of differences) { // along step, as they compress better
    const codes = state[name];
    for (let i = stride; i < codes.length; i++) codes[i] += codes[i - stride];
  }
  return state;
}

function shim(state) {
  const heard = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const fn of heard[`change:${name}`] ?? []) fn();
    },
    on: (event, fn) => (heard[event] ??= []).push(fn),
    off: (event, fn) => (heard[event] = (heard[event] ?? []).filter((other) => other !== fn)),
    save_changes() {},
  };
}

theme(document.documentElement);
onTheme(() => theme(document.documentElement));
unpackPage().then((state) => render({ model: shim(state), el: document.getElementById("view") }));

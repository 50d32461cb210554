// Colours for any number of runs: those of style.css first, then hues between them.

const GIVEN = 8; // --run-0 ... in style.css
const GOLDEN = 137.508; // degrees: each hue falls into a wide gap of those before it
const FROM = 236; // tried out: the farthest from the given ones

/** The n-th colour as CSS, for light and dark; no two are the same. */
export function colour(n) {
  if (n < GIVEN) return `var(--run-${n})`;
  const k = n - GIVEN;
  const hue = (FROM + k * GOLDEN) % 360;
  const ring = k % 3; // like hues differ in lightness
  const light = [0.36, 0.56, 0.46][ring];
  const dark = [0.86, 0.68, 0.76][ring];
  const at = (l) => `oklch(${l} 0.14 ${hue.toFixed(1)})`;
  return `light-dark(${at(light)}, ${at(dark)})`;
}

/** Numbers for names: each keeps its own while it is held, and a new one gets the lowest free. */
export class Numbers {
  held = new Map();

  /** Hold these names and no others. */
  hold(names) {
    const wanted = new Set(names);
    for (const name of this.held.keys()) if (!wanted.has(name)) this.held.delete(name);
    const taken = new Set(this.held.values());
    let free = 0;
    for (const name of wanted) {
      if (this.held.has(name)) continue;
      while (taken.has(free)) free++;
      taken.add(free);
      this.held.set(name, free);
    }
  }

  of(name) {
    return this.held.get(name);
  }
}

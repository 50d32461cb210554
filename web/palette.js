// Colours for any number of runs: first those in style.css, then hues between them.

const GIVEN = 8; // --run-0 ... in style.css
const GOLDEN = 137.508; // degrees (golden angle): each new hue is far from the earlier ones
const FROM = 236; // found by trying: the hues are farthest from the given colours

/** The n-th colour as CSS, for light and dark themes; all are different. */
export function colour(n) {
  if (n < GIVEN) return `var(--run-${n})`;
  const k = n - GIVEN;
  const hue = (FROM + k * GOLDEN) % 360;
  const ring = k % 3; // so similar hues have different lightness
  const light = [0.36, 0.56, 0.46][ring];
  const dark = [0.86, 0.68, 0.76][ring];
  const at = (l) => `oklch(${l} 0.14 ${hue.toFixed(1)})`;
  return `light-dark(${at(light)}, ${at(dark)})`;
}

/** Numbers for names. A name keeps its number while it is held; a new one gets the lowest free. */
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

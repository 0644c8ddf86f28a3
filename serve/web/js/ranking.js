// Places of three or four answers: plain data, no DOM. The best place is the first; answers in one place are alike.

/** "1st" to "4th". */
export const ordinal = (place) => ["1st", "2nd", "3rd", "4th"][place];

/** The places with what is still unplaced put last, where that leaves no question; null where it does. */
export function complete(places, sides) {
  const placed = places.flat();
  const left = sides.filter((side) => !placed.includes(side));
  if (left.length > 1 || !placed.length) return null;
  return left.length ? [...places, left] : places;
}

/** The places after this answer was picked: picked anew it goes last (or to the last place); picked again it is taken back. */
export function pick(places, side, joining) {
  if (places.flat().includes(side)) return places.map((place) => place.filter((one) => one !== side)).filter((place) => place.length);
  if (joining && places.length) return [...places.slice(0, -1), [...places.at(-1), side]];
  return [...places, [side]];
}

/** The places without the answer that was picked last. */
export function undo(places) {
  const last = places.at(-1)?.slice(0, -1) ?? [];
  return last.length ? [...places.slice(0, -1), last] : places.slice(0, -1);
}

/** The rank of each place: after two firsts comes the third. */
export function ranks(places) {
  const found = {};
  let before = 0;
  for (const place of places) {
    for (const side of place) found[side] = before;
    before += place.length;
  }
  return found;
}

const letters = (place) => {
  const names = [...place].sort().map((side) => side.toUpperCase());
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
};

/** In words: "B, then A and C". */
export const inWords = (places) => places.map(letters).join(", then ");

/** A text goes in; its words, parts and places come out. Places are of UTF-16 units, JavaScript's own. */

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });
const BETWEEN_WORDS = /^[\s\p{P}]+$/u;
const OPENING = /(?:^|\s)(\p{P}+)$/u; // marks between a space and a word: they belong to the word

/** Where each character (code point, as the server counts) begins, and the end: `text.slice(at[start], at[end])`. */
export function unitsOfCharacters(text) {
  const at = [0];
  for (const character of text) at.push(at.at(-1) + character.length);
  return at;
}

/** `[start, end]` of each word, with what follows it up to the next; together they are the whole text. */
export function words(text) {
  let end = 0;
  const found = [...segmenter.segment(text)].filter(({ segment }) => !BETWEEN_WORDS.test(segment));
  const starts = found.map(({ index, segment }) => {
    const opening = OPENING.exec(text.slice(end, index))?.[1].length ?? 0;
    end = index + segment.length;
    return index - opening;
  });
  return starts.map((start, index) => [index ? start : 0, starts[index + 1] ?? text.length]);
}

/**
 * Neighbouring words of each text as groups, as small as `most` groups in all allow: `{side, start, end}`. Never all of
 * a text: the server reads no empty ones.
 */
export function groups(texts, most) {
  const all = texts.map(words);
  let size = 1;
  while (all.reduce((sum, side) => sum + Math.ceil(side.length / size), 0) > most) size++;
  return all.flatMap((side, index) => {
    const starts = side.filter((_, at) => at % size === 0).map(([start]) => start);
    const parts = starts.map((start, at) => ({ side: index, start, end: starts[at + 1] ?? texts[index].length }));
    return parts.length > 1 ? parts : [];
  });
}

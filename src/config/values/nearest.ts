import { distance } from "fastest-levenshtein";

/** The items that a user may have meant by the misspelled text `written`: at most three, the nearest first. */
export function nearestOf<Item>(written: string, items: Iterable<Item>, textOf: (item: Item) => string): Item[] {
  const most = mostSlips(written);
  const ranked = Array.from(items, (item) => ({
    item,
    cost: costOf(written.toLowerCase(), textOf(item).toLowerCase()),
  }));
  return ranked
    .filter(({ cost }) => cost <= most)
    .sort((a, b) => a.cost - b.cost)
    .slice(0, 3)
    .map(({ item }) => item);
}

/** The number of wrong, missing or extra letters. Two swapped letters count once. */
export function slips(written: string, text: string): number {
  const count = distance(written, text);
  return count === 2 && lettersOf(written) === lettersOf(text) ? 1 : count;
}

/** How many slips a word can have and still be recognized. With more, a suggestion is a guess. */
export function mostSlips({ length }: string): number {
  if (length < 2) return 0;
  return length < 6 ? 1 : 2;
}

/** The cost of a match. If `written` is the beginning of `text`, the whole missing rest counts as one slip. */
function costOf(written: string, text: string): number {
  return text.startsWith(written) && written !== "" ? Math.min(1, text.length - written.length) : slips(written, text);
}

function lettersOf(text: string): string {
  return [...text].sort().join("");
}

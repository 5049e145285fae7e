import { distance } from "fastest-levenshtein";

/** The items whose text a misspelled one could mean, at most three, the nearest first. */
export function nearestOf<Item>(written: string, items: Iterable<Item>, textOf: (item: Item) => string): Item[] {
  const most = Math.min(2, written.length - 1);
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

/** The rest of a word costs as much as one wrong letter. */
function costOf(written: string, text: string): number {
  return text.startsWith(written) && written !== ""
    ? Math.min(1, text.length - written.length)
    : distance(written, text);
}

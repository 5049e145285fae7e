/** Tables on a terminal cut the middle out of a long id, and put this character there. */
const CUT = "…";

/** The text without the character that stands for the middle of an id. */
export function withoutCut(text: string): string {
  return text.replace(CUT, "");
}

/** Whether the text is the beginning of the id, or the beginning and the end with `…` between them, as tables show it. */
export function mayMean(text: string, id: string): boolean {
  const [start = "", end = ""] = text.split(CUT, 2);
  const isLongEnough = id.length >= start.length + end.length;
  return start !== "" && isLongEnough && id.startsWith(start) && id.endsWith(end);
}

/** The ids that a person may mean: the id that equals the text, or else all ids for which {@link mayMean} is true. */
export function meantIds(text: string, ids: readonly string[]): string[] {
  return ids.includes(text) ? [text] : [...new Set(ids)].filter((id) => mayMean(text, id));
}

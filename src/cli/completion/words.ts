/**
 * Splits a command line up to the cursor into words, and removes their quotes, as bash does. Expands nothing. The last
 * word ends at the cursor, and is empty after a space.
 */
export function splitLine(line: string): string[] {
  const words: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let at = 0; at < line.length; at++) {
    const character = line.charAt(at);
    if (character === quote) quote = "";
    else if (quote === "" && (character === '"' || character === "'")) {
      quote = character;
      word ??= "";
    } else if (quote === "" && /\s/.test(character)) {
      if (word !== null) words.push(word);
      word = null;
    } else {
      const isEscape = character === "\\" && quote !== "'";
      word = (word ?? "") + (isEscape ? line.charAt(++at) : character);
    }
  }
  return [...words, word ?? ""];
}

// Matches a string, a punctuation character, or a number or literal, in a text that is JSON.
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/** An open object or list. `index` is the position of the current item of a list, and null in an object. */
interface Open {
  name: string;
  index: number | null;
}

/**
 * Returns the line of a key in a text that `JSON.parse` accepts, or undefined if the key is not there. If a key is
 * there twice, the last one counts, as for `JSON.parse`.
 *
 * @param name the dotted key, with an index ("runtime.args[0]") for an item of a list
 */
export function lineOfKey(text: string, name: string): number | undefined {
  const open: Open[] = [];
  /** The name of the next value. */
  let next = "";
  let expectsName = false;
  let found: number | undefined;
  for (const { 0: token, index: at } of text.matchAll(TOKEN)) {
    const inside = open.at(-1);
    if (token === "," && inside !== undefined) {
      if (inside.index === null) expectsName = true;
      else next = `${inside.name}[${++inside.index}]`;
    } else if (token === "}" || token === "]") {
      open.pop();
      expectsName = false;
    } else if (token !== ":") {
      if (expectsName) {
        const part = JSON.parse(token) as string;
        next = inside === undefined || inside.name === "" ? part : `${inside.name}.${part}`;
      }
      // A key is on the line of its name. An item of a list has no name, so it is on the line of its value.
      if ((expectsName || inside?.index != null) && next === name) found = at;
      if (expectsName) expectsName = false;
      else if (token === "{") {
        open.push({ name: next, index: null });
        expectsName = true;
      } else if (token === "[") {
        open.push({ name: next, index: 0 });
        next = `${next}[0]`;
      }
    }
  }
  return found === undefined ? undefined : text.slice(0, found).split("\n").length;
}

import { Document } from "yaml";

/** One YAML document, with what stands above it as comments. */
export interface CommentedManifest {
  value: object;
  comment?: string | undefined;
}

/** A stream of YAML documents. `heading` are comments at its top, a sentence each. */
export function yamlStream(heading: readonly string[], manifests: readonly CommentedManifest[]): string {
  const top = heading.map((line) => `${comment(line)}\n`).join("");
  return top + manifests.map(yamlDocument).join("---\n");
}

function yamlDocument({ value, comment: above }: CommentedManifest): string {
  // In YAML 1.1, which kubectl and some readers of Compose files still read, a bare `yes` or `on` is no string.
  const document = new Document(value, { aliasDuplicateObjects: false, compat: "yaml-1.1" });
  // Long lines stay whole: a folded one reads as if its breaks meant something.
  const text = document.toString({ lineWidth: 0 });
  return above === undefined ? text : `${comment(above)}\n${text}`;
}

const WIDTH = 118;

/** Text as comment lines of limited width. Line breaks in what was configured never end the comment. */
export function comment(text: string): string {
  const lines: string[] = [];
  for (const word of text.split(/\s+/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= WIDTH) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.map((line) => `# ${line}`).join("\n");
}

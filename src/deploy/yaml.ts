import { Document } from "yaml";

export interface CommentedManifest {
  value: object;
  comment?: string | undefined;
}

/** Renders a stream of YAML documents. Each sentence of `heading` becomes a comment at the top. */
export function yamlStream(heading: readonly string[], manifests: readonly CommentedManifest[]): string {
  const top = heading.map((line) => `${comment(line)}\n`).join("");
  return top + manifests.map(yamlDocument).join("---\n");
}

function yamlDocument({ value, comment: above }: CommentedManifest): string {
  // Quote a bare `yes` or `on`, because kubectl still reads YAML 1.1, where these are booleans.
  const document = new Document(value, { aliasDuplicateObjects: false, compat: "yaml-1.1" });
  // Do not fold long lines, because the line breaks would look significant.
  const text = document.toString({ lineWidth: 0 });
  return above === undefined ? text : `${comment(above)}\n${text}`;
}

const WIDTH = 118;

/**
 * Renders text as comment lines of limited width. Replaces line breaks, so that a line break in a configured value does
 * not end the comment.
 */
export function comment(text: string): string {
  const lines: string[] = [];
  for (const word of text.split(/\s+/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= WIDTH) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.map((line) => `# ${line}`).join("\n");
}

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));

export interface Block {
  /** The path of the page in the repository, such as "docs/start.md". */
  page: string;
  /** The number of the block's first line of content in the page. The first line of a page is 1. */
  line: number;
  /** The word after the fence, such as "sh"; empty if there is none. */
  language: string;
  text: string;
}

/** The pages for users and contributors. */
export function pages(): string[] {
  const inDocs = (readdirSync(join(ROOT, "docs"), { recursive: true }) as string[])
    .filter((path) => path.endsWith(".md") && !/^(api\/|node_modules\/|errors\.md$)/.test(path))
    .map((path) => `docs/${path}`);
  return ["README.md", "CONTRIBUTING.md", "SECURITY.md", ...inDocs].sort();
}

/** The code blocks of a page, in their order. */
export function blocksOf(page: string): Block[] {
  const text = readFileSync(join(ROOT, page), "utf8");
  return [...text.matchAll(/^( *)```([a-z]*)\n([\s\S]*?)^\1```$/gm)].map((match) => ({
    page,
    line: text.slice(0, match.index).split("\n").length + 1,
    language: match[2] ?? "",
    text: match[3] ?? "",
  }));
}

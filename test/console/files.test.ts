import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { brotliDecompressSync } from "node:zlib";
import { describe, expect, it } from "vitest";

const FOLDER = fileURLToPath(new URL("../../dist/console/", import.meta.url));
const LARGEST_BYTES = 150_000;

const names = readdirSync(FOLDER);
const files = names
  .filter((name) => name.endsWith(".br"))
  .map((name) => ({ name, compressed: readFileSync(FOLDER + name) }));

describe("the files of the console", () => {
  it("the files of the console have at most 150 kB in total, compressed", () => {
    const bytes = files.reduce((sum, { compressed }) => sum + compressed.length, 0);
    expect(bytes).toBeGreaterThan(20_000);
    expect(bytes).toBeLessThanOrEqual(LARGEST_BYTES);
  });

  it("all files of the console except the page have a hash in their names", () => {
    for (const { name } of files) expect(name).toMatch(/^(index\.html|[\w-]+-[A-Z0-9]{8}\.(js|css))\.br$/);
  });

  it("each file of the console exists as it is and compressed, for clients that do not accept brotli", () => {
    expect(names).toHaveLength(2 * files.length);
    for (const { name, compressed } of files)
      expect(readFileSync(FOLDER + name.replace(/\.br$/, ""))).toEqual(brotliDecompressSync(compressed));
  });

  it("the files of the console contain no address from which a browser would load something", () => {
    const loading = /(?:src|href|url|import|fetch)\s*[=(:]\s*["'`]?\s*(?:https?:)?\/\/[^\s"'`)]+/gi;
    for (const { name, compressed } of files) {
      const text = brotliDecompressSync(compressed).toString("utf8");
      expect([name, ...(text.match(loading) ?? [])]).toEqual([name]);
    }
  });
});

import { existsSync, readFileSync } from "node:fs";
import { expect, it } from "vitest";

const ROOT = new URL("../../", import.meta.url);
const read = (path: string) => readFileSync(new URL(path, ROOT), "utf8");
const model = read("docs/threat-model.md");

/** The first and the last cell of each row of the table below a heading. */
function rowsOf(heading: string): { first: string; last: string }[] {
  const section = model.split(`\n## ${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  const rows = [...section.matchAll(/^\|(.*)\|$/gm)].map(([, row = ""]) => row.split("|").map((cell) => cell.trim()));
  return rows.slice(2).map((cells) => ({ first: cells[0] ?? "", last: cells.at(-1) ?? "" }));
}

it("the threat model names each party", () => {
  expect(rowsOf("Trust").map(({ first }) => first)).toEqual([
    "operator",
    "root of the host",
    "account of the fleet",
    "other hosts of the fleet",
    "Redis",
    "user",
    "client",
    "agent",
    "model provider",
    "repository",
    "network of the machine",
    "identity provider",
    "network between machines",
  ]);
});

it("each boundary in the threat model names a test file that exists", () => {
  const rows = rowsOf("Boundaries");
  expect(rows.length).toBeGreaterThan(10);
  for (const { first, last } of rows) {
    const [, path = ""] = /^`(test\/.*\.test\.ts)`$/.exec(last) ?? [];
    expect(existsSync(new URL(path, ROOT)), `the test of "${first}": ${last}`).toBe(true);
  }
});

it("SECURITY.md and docs/security.md link to the threat model", () => {
  expect(read("SECURITY.md")).toContain("(docs/threat-model.md)");
  expect(read("docs/security.md")).toContain("(threat-model.md)");
});

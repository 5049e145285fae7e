import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { ALL_PROTECTIONS, PROTECTIONS } from "../../src/base/sandbox.js";
import { tryBwrapAlone, tryBwrapAround } from "../../src/sandbox/bwrap.js";
import { tryLauncher, trySetpriv } from "../../src/sandbox/landlock.js";
import type { Attempt } from "../../src/sandbox/sandbox.js";

const text = readFileSync(new URL("../../docs/security.md", import.meta.url), "utf8");
const rows = [...text.matchAll(/^\| `(bwrap|landlock|none)`\s*\|([^|]*)\|([^|]*)\|$/gm)].map(
  ([, mode, how, still]) => ({
    mode,
    how: how?.trim() ?? "",
    still: still?.trim().split(", "),
  }),
);

it("the table of sandboxes in docs/security.md lists what each sandbox does not restrict on this machine", async () => {
  const launcher = await tryLauncher();
  const attempts: [start: string, attempt: Attempt][] = [
    ["bwrap around our launcher", await tryBwrapAround(launcher)],
    ["bwrap alone", await tryBwrapAlone()],
    ["our launcher", launcher],
    ["`setpriv`", await trySetpriv()],
  ];
  const found = rows.flatMap(({ mode, how, still }) => {
    const [, attempt] = attempts.find(([start]) => how.startsWith(start)) ?? [];
    if (attempt === undefined) return [{ mode, still, expected: { mode: "none", not: ALL_PROTECTIONS } }];
    if ("why" in attempt) {
      console.warn(`the row "${how}" of docs/security.md is not compared: ${attempt.why}`);
      return [];
    }
    return [{ mode, still, expected: { mode: attempt.mode, not: [...attempt.not] } }];
  });
  expect(found.map(({ mode, still }) => ({ mode, not: still }))).toEqual(found.map(({ expected }) => expected));
});

it("docs/security.md explains each protection that the table of sandboxes names", () => {
  for (const [name, meaning] of Object.entries(PROTECTIONS)) expect(text).toContain(`- \`${name}\`: ${meaning}`);
});

import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { RefusalLog } from "../../../src/sandbox/network/proxy.js";

const REFUSED = {
  user: "alice",
  server: "alice-1",
  target: { host: "a.example", port: 443 },
  result: "refused",
  detail: 'a text with "quotes" and\na second line',
} as const;

function newLog(limits?: { perMinute: number; bytes: number }) {
  const folder = mkdtempSync(join(tmpdir(), "fleet-egress-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const path = join(folder, "egress.log");
  const read = () =>
    readFileSync(path, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { server: string; detail: string });
  return { log: new RefusalLog(path, limits), folder, path, read };
}

it("the refusal log has one line for each refused request, and only the fleet's account can read it", () => {
  const { log, path, read } = newLog();
  log.write(REFUSED, 0);
  expect(read()).toEqual([
    { ...REFUSED, target: undefined, host: "a.example", port: 443, time: "1970-01-01T00:00:00.000Z" },
  ]);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

it("the refusal log limits the lines of each server per minute, and then logs how many it left out", () => {
  const { log, read } = newLog({ perMinute: 2, bytes: 1_000_000 });
  for (let count = 0; count < 50; count++) log.write(REFUSED, 0);
  log.write({ ...REFUSED, server: "bob-1" }, 1_000);
  log.write(REFUSED, 61_000);
  expect(read().map(({ server, detail }) => [server, detail.slice(0, 16)])).toEqual([
    ["alice-1", 'a text with "quo'],
    ["alice-1", 'a text with "quo'],
    ["bob-1", 'a text with "quo'],
    ["alice-1", "48 more requests"],
    ["alice-1", 'a text with "quo'],
  ]);
});

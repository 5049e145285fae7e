import { mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import {
  createServerFolder,
  homeOf,
  readConnectionToken,
  writeConnectionToken,
} from "../../src/runtime/server-folder.js";
import { temporaryRoot } from "../fixtures/store-root.js";

/** A server's folder, and the path of the file that a new connection token is first written to. */
async function serverFolder(): Promise<{ home: string; temporary: string }> {
  const root = await temporaryRoot();
  mkdirSync(join(root, "servers"), { recursive: true });
  const home = homeOf(root, "alice");
  createServerFolder(home);
  return { home, temporary: join(dirname(home), "connection-token.tmp") };
}

it("writes the connection token beside a link that stands in its way, not through it", async () => {
  const { home, temporary } = await serverFolder();
  const elsewhere = join(dirname(home), "elsewhere");
  writeFileSync(elsewhere, "untouched", { mode: 0o644 });
  symlinkSync(elsewhere, temporary);
  const token = writeConnectionToken(home);
  expect(readFileSync(elsewhere, "utf8")).toBe("untouched");
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("writes the connection token over what a killed start left, for the owner alone", async () => {
  const { home, temporary } = await serverFolder();
  writeFileSync(temporary, "half", { mode: 0o644 });
  const token = writeConnectionToken(home);
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("refuses to start when the connection token's file cannot be replaced", async () => {
  const { home, temporary } = await serverFolder();
  mkdirSync(temporary);
  expect(() => writeConnectionToken(home)).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNWRITABLE" }));
});

import { mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import {
  createServerFolder,
  homeOf,
  readConnectionToken,
  writeConnectionToken,
} from "../../src/runtime/files/server-folder.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

/** Creates a server's folder. `temporary` is the path to which a new connection token is first written. */
async function serverFolder(): Promise<{ home: string; temporary: string }> {
  const root = await temporaryRoot();
  mkdirSync(join(root, "servers"), { recursive: true });
  const home = homeOf(root, "alice");
  createServerFolder(home);
  return { home, temporary: join(dirname(home), "connection-token.tmp") };
}

it("a link at the temporary path of the connection token is replaced, and its target stays untouched", async () => {
  const { home, temporary } = await serverFolder();
  const elsewhere = join(dirname(home), "elsewhere");
  writeFileSync(elsewhere, "untouched", { mode: 0o644 });
  symlinkSync(elsewhere, temporary);
  const token = writeConnectionToken(home);
  expect(readFileSync(elsewhere, "utf8")).toBe("untouched");
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("writing the connection token replaces the temporary file of a killed start, and only the file's owner can read the token", async () => {
  const { home, temporary } = await serverFolder();
  writeFileSync(temporary, "half", { mode: 0o644 });
  const token = writeConnectionToken(home);
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("writing the connection token fails when its temporary path is a folder", async () => {
  const { home, temporary } = await serverFolder();
  mkdirSync(temporary);
  expect(() => writeConnectionToken(home)).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNWRITABLE" }));
});

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

it("writeConnectionToken replaces a link at its temporary path, and does not write to the link's target", async () => {
  const { home, temporary } = await serverFolder();
  const elsewhere = join(dirname(home), "elsewhere");
  writeFileSync(elsewhere, "untouched", { mode: 0o644 });
  symlinkSync(elsewhere, temporary);
  const token = writeConnectionToken(home);
  expect(readFileSync(elsewhere, "utf8")).toBe("untouched");
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("writeConnectionToken replaces the temporary file of a killed start, and the token file has mode 0600", async () => {
  const { home, temporary } = await serverFolder();
  writeFileSync(temporary, "half", { mode: 0o644 });
  const token = writeConnectionToken(home);
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

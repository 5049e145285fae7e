import { execFileSync, spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { isUnreadable } from "../../src/store/failures.js";
import { mediumError } from "../../src/store/file/failures.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const TAKER = bundleFixture("files-taker");
/** More records than the store reads without a pause. */
const RECORDS = 120;
const hasLimit = spawnSync("prlimit", ["--nofile=64", "true"]).status === 0;

it.skipIf(!hasLimit)(
  "listing sessions fails with FLEET_FILES_EXHAUSTED, and skips no record, when the process runs out of files",
  async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    for (let at = 0; at < RECORDS; at++) await store.sessions.create(sessionRecord(`session-${at}`));
    await store.close();
    const output = execFileSync("prlimit", ["--nofile=64", process.execPath, TAKER, root], { encoding: "utf8" });
    expect(JSON.parse(output)).toEqual({
      code: "FLEET_FILES_EXHAUSTED",
      message: "This process may open only 64 files at once, which is too few.",
      unreadable: 0,
    });
  },
);

describe("isUnreadable", () => {
  const failed = (code: string) => mediumError("read", "/state/sessions/a", Object.assign(new Error(code), { code }));

  it.each(["EACCES", "EIO"])("a record whose read fails with %s counts as unreadable", (code) => {
    expect(isUnreadable(failed(code))).toBe(true);
  });

  it.each(["EMFILE", "ENFILE", "ENOMEM"])("a record whose read fails with %s does not count as unreadable", (code) => {
    expect(isUnreadable(failed(code))).toBe(false);
  });
});

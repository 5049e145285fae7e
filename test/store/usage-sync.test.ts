import fs, { statSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { afterEach, expect, it, vi } from "vitest";
import { openStore } from "../../src/store/store.js";
import { requestLines } from "../contract/usage.contract.js";
import { eventually } from "../fixtures/eventually.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

afterEach(() => {
  vi.restoreAllMocks();
  syncBuiltinESMExports();
});

/** The inode numbers of the files that are synced to disk from now on. */
function watchSyncs(): number[] {
  const synced: number[] = [];
  const { fsync } = fs;
  vi.spyOn(fs, "fsync").mockImplementation((fd, done) => {
    synced.push(fs.fstatSync(fd).ino);
    fsync(fd, done);
  });
  syncBuiltinESMExports();
  return synced;
}

it("the ledger syncs a segment to disk when it begins the next one, and the last segment in close()", async () => {
  const synced = watchSyncs();
  const { usage } = openStore("file", await temporaryRoot());
  const inoOf = (number: number) => statSync(usage.segments.pathOf(number)).ino;
  usage.append(requestLines("1"));
  usage.segments.seal();
  await eventually("the sync of the first segment", () => synced.includes(inoOf(1)));
  usage.append(requestLines("2"));
  await usage.close();
  expect(synced).toContain(inoOf(2));
});

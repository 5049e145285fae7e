import { statSync } from "node:fs";
import { expect, it, vi } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import { requestLines } from "../contract/usage.contract.js";
import { eventually } from "../fixtures/eventually.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const { synced } = vi.hoisted(() => ({ synced: [] as number[] }));
vi.mock("node:fs", async (original) => {
  const real = await original<typeof import("node:fs")>();
  const fsync = (fd: number, done: (error: Error | null) => void) => {
    synced.push(real.fstatSync(fd).ino);
    real.fsync(fd, done);
  };
  return { ...real, fsync };
});

it("syncs the last lines of the ledger to disk when it goes to the next segment, and when it is closed", async () => {
  const { usage } = openFileStore(await temporaryRoot());
  const inoOf = (number: number) => statSync(usage.segments.pathOf(number)).ino;
  usage.append(requestLines("1"));
  usage.segments.seal();
  await eventually("the sync of the first segment", () => synced.includes(inoOf(1)));
  usage.append(requestLines("2"));
  await usage.close();
  expect(synced).toContain(inoOf(2));
});

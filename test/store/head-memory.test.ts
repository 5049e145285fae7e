import { renameSync, writeFileSync } from "node:fs";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { encodeRevision, HeadMemory, readHead, revisionName } from "../../src/store/file/commit.js";
import { eventually } from "../fixtures/eventually.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

async function document(look?: (path: string) => string | null) {
  const folder = join(await temporaryRoot(), "document");
  await mkdir(folder, { recursive: true });
  const memory = new HeadMemory<NonNullable<ReturnType<typeof readHead>>>(look);
  let loads = 0;
  return {
    folder,
    commit: (rev: number, data: string) => {
      const path = join(folder, revisionName(rev));
      writeFileSync(`${path}.tmp`, encodeRevision(rev, "test", data));
      renameSync(`${path}.tmp`, path);
    },
    read: () => {
      const load = () => {
        loads++;
        return readHead(folder, 2) ?? null;
      };
      return memory.read(folder, load)?.data;
    },
    loads: () => loads,
  };
}

/** Waits until the memory answers without reading the document. */
async function remembered({ read, loads }: Awaited<ReturnType<typeof document>>): Promise<void> {
  await eventually("the document is remembered", () => {
    const before = loads();
    read();
    return loads() === before;
  });
}

it("HeadMemory reads a document again after each commit, however quickly the commits follow each other", async () => {
  const at = await document();
  for (let rev = 1; rev <= 500; rev++) {
    at.commit(rev, `${rev}`);
    expect(at.read()).toBe(`${rev}`);
  }
});

it("HeadMemory reads a remembered document again after a commit, and after the document was deleted", async () => {
  const at = await document();
  at.commit(1, "first");
  await remembered(at);
  at.commit(2, "second");
  expect(at.read()).toBe("second");
  await remembered(at);
  renameSync(at.folder, `${at.folder}-deleted`);
  expect(at.read()).toBeUndefined();
});

it("HeadMemory reads a remembered document again after a commit that left its folder's time unchanged", async () => {
  const at = await document(() => "unchanged");
  at.commit(1, "first");
  await remembered(at);
  at.commit(2, "second");
  expect(at.read()).toBe("second");
});

it("HeadMemory notices that the newest revision of a remembered document was damaged", async () => {
  const at = await document();
  at.commit(1, "first");
  at.commit(2, "second");
  await remembered(at);
  const [newest = ""] = (await readdir(at.folder)).toSorted().toReversed();
  const bytes = await readFile(join(at.folder, newest));
  writeFileSync(join(at.folder, newest), bytes.subarray(0, -5));
  expect(at.read()).toBe("first");
});

import { spawnSync } from "node:child_process";
import { renameSync } from "node:fs";
import { mkdir, readdir, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { type FileStore, openStore } from "../../src/store/store.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

/** The PID of a process that has ended. */
const DEAD = spawnSync(process.execPath, ["-e", ""]).pid;
const ELEVEN_MINUTES_AGO = (Date.now() - 11 * 60_000) / 1000;

const orphan = `.tmp-${DEAD}-0123456789ab`;
const orphanFolder = `.trash-${DEAD}-0123456789ab`;
const living = `.tmp-${process.ppid}-0123456789ab`;
const livingButOld = `.tmp-${process.ppid}-ba9876543210`;
const foreign = ".tmp-somebody-elses";

describe("the left-overs of killed writers", () => {
  let root: string;
  let store: FileStore;

  beforeEach(async () => {
    root = await temporaryRoot();
    store = openStore("file", root);
    await openStore("file", root).registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
    await store.sessions.create(sessionRecord("a"));
    for (const folder of [root, join(root, "registry"), join(root, "sessions", "a")]) await litter(folder);
  });

  async function litter(folder: string): Promise<void> {
    for (const name of [orphan, living, livingButOld, foreign]) await writeFile(join(folder, name), "half");
    await utimes(join(folder, livingButOld), ELEVEN_MINUTES_AGO, ELEVEN_MINUTES_AGO);
    await mkdir(join(folder, orphanFolder));
    await writeFile(join(folder, orphanFolder, "0000000000000001.json"), "");
  }

  async function leftIn(folder: string): Promise<string[]> {
    return (await readdir(folder)).filter((name) => name.startsWith(".")).toSorted();
  }

  it("a write to a folder deletes temporary files that are old or have a dead writer, and no others", async () => {
    await store.registry.update((draft) => void Object.assign(draft.servers, { s2: serverRecord("s2") }));
    expect(await leftIn(root)).toEqual([living, foreign]);
    expect(await leftIn(join(root, "registry"))).toEqual([living, foreign]);
    await store.sessions.update("a", (draft) => void draft.turns++);
    expect(await leftIn(join(root, "sessions", "a"))).toEqual([living, foreign]);
  });

  it("sweep() deletes, in all folders, only temporary files that are old or have a dead writer", async () => {
    await store.sweep();
    for (const folder of [root, join(root, "registry"), join(root, "sessions", "a")]) {
      expect(await leftIn(folder)).toEqual([living, foreign]);
    }
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1"]);
    expect(await store.sessions.list()).toEqual([sessionRecord("a")]);
  });
});

it("the file store ignores stray files and folders among the session records", async () => {
  const root = await temporaryRoot();
  const store = openStore("file", root);
  await store.sessions.create(sessionRecord("a"));
  await writeFile(join(root, "sessions", ".DS_Store"), "");
  await mkdir(join(root, "sessions", "lost + found"));
  expect(await store.sessions.list()).toEqual([sessionRecord("a")]);
});

it("the file store does not find a session under an id that differs only in case, even if the disk ignores case", async () => {
  const root = await temporaryRoot();
  const store = openStore("file", root);
  await store.sessions.create(sessionRecord("talk"));
  expect(await store.sessions.read("talk")).toMatchObject({ id: "talk" });
  // On a disk that ignores case, both names open the same folder.
  renameSync(join(root, "sessions", "talk"), join(root, "sessions", "Talk"));
  expect(await store.sessions.read("Talk")).toBeNull();
  await expect(store.sessions.update("Talk", (draft) => ++draft.turns)).rejects.toMatchObject({
    code: "FLEET_SESSION_NOT_FOUND",
  });
});

import { chmod, mkdir, readdir, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

type Damage = (path: string) => Promise<void>;

const DAMAGES: [string, Damage][] = [
  ["empty", (path) => truncate(path, 0)],
  ["cut in half", async (path) => truncate(path, Math.floor((await stat(path)).size / 2))],
  ["short of its last byte", async (path) => truncate(path, (await stat(path)).size - 1)],
  ["all zero bytes", async (path) => writeFile(path, Buffer.alloc((await stat(path)).size))],
  ["one bit off in the data", async (path) => flipBit(path, Math.floor((await stat(path)).size * 0.7))],
  // The bit is not in the schema number, because a larger number would stand for a newer version.
  ["one bit off in the header", (path) => flipBit(path, '{"schema":1,"'.length)],
  ["replaced by other JSON", (path) => writeFile(path, "[]\n[]\n")],
];

async function flipBit(path: string, at: number): Promise<void> {
  const bytes = await readFile(path);
  bytes[at] = (bytes[at] ?? 0) ^ 0x04;
  await writeFile(path, bytes);
}

/** Adds `count` servers in separate commits, so that revision N holds the servers s1 to sN. */
async function filled(count: number): Promise<string> {
  const root = await temporaryRoot();
  const store = openStore("file", root);
  for (let rev = 1; rev <= count; rev++) await add(root, `s${rev}`);
  await store.close();
  return root;
}

async function add(root: string, id: string): Promise<void> {
  await openStore("file", root).registry.update((draft) => {
    draft.servers[id] = serverRecord(id);
  });
}

async function revisions(root: string): Promise<string[]> {
  const names = await readdir(join(root, "registry"));
  return names.filter((name) => /^\d+\.json$/.test(name)).map((name) => join(root, "registry", name));
}

async function serverIds(root: string): Promise<string[]> {
  return Object.keys((await openStore("file", root).registry.read()).servers);
}

/** The contents of every file below a folder. */
async function contents(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return Object.fromEntries(
    await Promise.all(files.map(async (file) => [file, await readFile(file, "latin1")] as const)),
  );
}

describe.each(DAMAGES)("the file store, with a registry whose head revision is %s,", (_, damage) => {
  it("a damaged head revision is recovered from registry.json, with one warning and without a loss", async () => {
    const root = await filled(3);
    await damage(join(root, "registry", "0000000000000003.json"));
    const store = openStore("file", root);
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1", "s2", "s3"]);
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(
        /^The newest revision of the registry is damaged \(it.*0000000000000003\.json"\)\. The fleet recovered revision 3 from its copy ".*registry\.json"; nothing is lost\. Check the disk, then run: copilotfleet doctor --fix$/,
      ),
    ]);
    expect(store.takeWarnings()).toEqual([]);
    await add(root, "s4");
    expect(await serverIds(root)).toEqual(["s1", "s2", "s3", "s4"]);
  });

  it("without registry.json, a damaged registry goes back one revision, and keeps the damaged file", async () => {
    const root = await filled(3);
    const damaged = join(root, "registry", "0000000000000003.json");
    await damage(damaged);
    const evidence = await readFile(damaged);
    await rm(join(root, "registry.json"));
    const store = openStore("file", root);
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1", "s2"]);
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(
        /^The newest revision of the registry is damaged .*went back to revision 2 and lost the last change: a server that it started may run without a record\. Check/,
      ),
    ]);
    await add(root, "s4");
    expect(await serverIds(root)).toEqual(["s1", "s2", "s4"]);
    expect(await readdir(join(root, "registry"))).toContain("0000000000000004.json");
    expect(await readFile(join(root, "registry", "corrupt-0000000000000003.json"))).toEqual(evidence);
  });
});

describe.each(DAMAGES)("the file store, with a registry whose revisions are all %s,", (_, damage) => {
  it("a registry is recovered from registry.json when all its revisions are damaged", async () => {
    const root = await filled(3);
    await Promise.all((await revisions(root)).map(damage));
    const store = openStore("file", root);
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1", "s2", "s3"]);
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(/^The newest 3 revisions of the registry are damaged \(it.*recovered revision 3/),
    ]);
    await add(root, "s4");
    expect(await serverIds(root)).toEqual(["s1", "s2", "s3", "s4"]);
    expect(await readdir(join(root, "registry"))).toContain("0000000000000004.json");
  });

  it.each(["missing", "damaged too"])(
    "a registry is refused, and not treated as empty, when all its revisions are damaged and registry.json is %s",
    async (copy) => {
      const root = await filled(3);
      await Promise.all((await revisions(root)).map(damage));
      if (copy === "missing") await rm(join(root, "registry.json"));
      else await truncate(join(root, "registry.json"), 10);
      const before = await contents(root);
      const corrupt = { code: "FLEET_STATE_CORRUPT", exit: 7 };
      await expect(openStore("file", root).registry.read()).rejects.toMatchObject(corrupt);
      await expect(add(root, "s4")).rejects.toMatchObject(corrupt);
      expect(await contents(root)).toEqual(before);
    },
  );
});

describe("the file store, with its registry.json,", () => {
  // Leave out "short of its last byte": that byte is only a line break, so registry.json is complete without it. Leave
  // out the flipped bits, too, because registry.json has no checksum that would reveal them.
  const shaped: [string, Damage] = [
    "replaced by an object without servers",
    (path) => writeFile(path, '{"schema":1}\n'),
  ];
  it.each([...DAMAGES.filter(([how]) => !/^short of|^one bit/.test(how)), shaped])(
    "the store ignores a registry.json that is %s, and the next commit renames that file and writes a new one",
    async (_, damage) => {
      const root = await filled(2);
      const path = join(root, "registry.json");
      await damage(path);
      const evidence = await readFile(path);
      const store = openStore("file", root);
      expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1", "s2"]);
      expect(store.takeWarnings()).toEqual([expect.stringMatching(/registry\.json.*is damaged/)]);
      await add(root, "s3");
      expect(Object.keys(JSON.parse(await readFile(path, "utf8")).servers)).toEqual(["s1", "s2", "s3"]);
      const aside = (await readdir(root)).filter((name) => name.startsWith("registry.json.corrupt-"));
      expect(aside).toHaveLength(1);
      expect(await readFile(join(root, aside[0] ?? ""))).toEqual(evidence);
    },
  );

  it("the next commit writes a missing registry.json again", async () => {
    const root = await filled(2);
    await rm(join(root, "registry.json"));
    expect(await serverIds(root)).toEqual(["s1", "s2"]);
    await add(root, "s3");
    expect(JSON.parse(await readFile(join(root, "registry.json"), "utf8"))).toMatchObject({ schema: 1, rev: 3 });
  });

  it("a registry without revisions is recovered from registry.json, and reuses no revision number", async () => {
    const root = await filled(3);
    await rm(join(root, "registry"), { recursive: true });
    const store = openStore("file", root);
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1", "s2", "s3"]);
    expect(store.takeWarnings()).toEqual([expect.stringContaining("recovered revision 3")]);
    await add(root, "s4");
    expect(await readdir(join(root, "registry"))).toEqual(["0000000000000004.json"]);
    expect(await serverIds(root)).toEqual(["s1", "s2", "s3", "s4"]);
  });

  it("a store that has only a kept copy of a damaged registry.json is refused, and not treated as empty", async () => {
    const root = await filled(1);
    await rm(join(root, "registry"), { recursive: true });
    await rename(join(root, "registry.json"), join(root, "registry.json.corrupt-2026-01-01T00-00-00-000Z"));
    await expect(openStore("file", root).registry.read()).rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
  });

  it("the store refuses to recover from a registry.json that does not have the shape of a registry", async () => {
    const root = await filled(1);
    await rm(join(root, "registry"), { recursive: true });
    for (const servers of [null, [], { s1: null }, { s1: { id: "other" } }]) {
      await writeFile(join(root, "registry.json"), JSON.stringify({ schema: 1, rev: 1, servers }));
      await expect(openStore("file", root).registry.read()).rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
    }
  });
});

describe("the file store, after an interrupted first commit,", () => {
  it.each([
    ["only the state folder", async (root: string) => void (await mkdir(root, { mode: 0o700 }))],
    [
      "only an empty revision folder",
      async (root: string) => void (await mkdir(join(root, "registry"), { recursive: true })),
    ],
    [
      "only a temporary file",
      async (root: string) => {
        await mkdir(join(root, "registry"), { recursive: true });
        await writeFile(join(root, "registry", ".tmp-1-abcdef012345"), '{"schema":1');
      },
    ],
  ])("the file store is empty and accepts commits when an interrupted first commit left %s", async (_, leave) => {
    const root = await temporaryRoot();
    await leave(root);
    await chmod(root, 0o700);
    expect(await serverIds(root)).toEqual([]);
    await add(root, "s1");
    expect(await serverIds(root)).toEqual(["s1"]);
  });
});

describe("the file store, with a newer schema,", () => {
  it.each(["registry.json", "registry/0000000000000002.json"])(
    "the store refuses a registry with a newer schema in %s, and changes no file",
    async (name) => {
      const root = await filled(2);
      const path = join(root, name);
      await writeFile(path, (await readFile(path, "utf8")).replace(/"schema":( ?)1/, '"schema":$199'));
      const before = await contents(root);
      const refusal = { code: "FLEET_PROTOCOL_UNSUPPORTED", exit: 3 };
      await expect(openStore("file", root).registry.read()).rejects.toMatchObject(refusal);
      await expect(add(root, "s3")).rejects.toMatchObject(refusal);
      expect(await contents(root)).toEqual(before);
    },
  );

  it("the store refuses a session record with a newer schema in every operation, and changes no file", async () => {
    const root = await temporaryRoot();
    const store = openStore("file", root);
    await store.sessions.create(sessionRecord("a"));
    const folder = join(root, "sessions", "a");
    const path = join(folder, (await readdir(folder))[0] ?? "");
    await writeFile(path, (await readFile(path, "utf8")).replace('"schema":1', '"schema":2'));
    const before = await contents(root);
    const refusal = { code: "FLEET_PROTOCOL_UNSUPPORTED" };
    await expect(store.sessions.read("a")).rejects.toMatchObject(refusal);
    await expect(store.sessions.update("a", (draft) => void draft.turns++)).rejects.toMatchObject(refusal);
    await expect(store.sessions.delete("a")).rejects.toMatchObject(refusal);
    await expect(store.sessions.list()).rejects.toMatchObject(refusal);
    expect(await contents(root)).toEqual(before);
  });
});

describe.each(DAMAGES)("the file store, with a session record that is %s,", (_, damage) => {
  it("a session record with a damaged newest revision goes back to the previous revision, with a warning", async () => {
    const root = await temporaryRoot();
    const store = openStore("file", root);
    await store.sessions.create(sessionRecord("a"));
    for (let turn = 0; turn < 3; turn++) await store.sessions.update("a", (draft) => void draft.turns++);
    const folder = join(root, "sessions", "a");
    await damage(join(folder, (await readdir(folder)).toSorted().at(-1) ?? ""));
    expect(await store.sessions.read("a")).toMatchObject({ turns: 2 });
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(
        /^The newest revision of the record of session "a" is damaged .*uses the previous revision and/,
      ),
    ]);
    expect(await store.sessions.update("a", (draft) => ++draft.turns)).toBe(3);
    expect(await store.sessions.read("a")).toMatchObject({ turns: 3 });
  });

  it("a session record whose revisions are all damaged is refused, and can only be deleted", async () => {
    const root = await temporaryRoot();
    const store = openStore("file", root);
    await store.sessions.create(sessionRecord("a"));
    const folder = join(root, "sessions", "a");
    await damage(join(folder, (await readdir(folder))[0] ?? ""));
    const corrupt = { code: "FLEET_STATE_CORRUPT" };
    await expect(store.sessions.read("a")).rejects.toMatchObject(corrupt);
    await expect(store.sessions.list()).rejects.toMatchObject(corrupt);
    await expect(store.sessions.update("a", (draft) => void draft.turns++)).rejects.toMatchObject(corrupt);
    await expect(store.sessions.create(sessionRecord("a"))).rejects.toMatchObject({ code: "FLEET_SESSION_EXISTS" });
    expect(await store.sessions.delete("a")).toBe(true);
    expect(await store.sessions.list()).toEqual([]);
  });
});

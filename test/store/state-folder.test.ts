import { chmod, chown, lchown, mkdir, readdir, rename, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { unfitType } from "../../src/base/system/file-systems.js";
import { checkStateFolder, ensureStateFolder, restoreModes } from "../../src/store/file/state-folder.js";
import { openStore } from "../../src/store/store.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const IS_ROOT = process.getuid?.() === 0;

/** A fault of a state folder, how to cause it, and what the message and the suggested command must contain. */
const UNSAFE: [string, (root: string) => Promise<void>, RegExp, RegExp][] = [
  ["a file", (root) => writeFile(root, ""), /is not a folder/, /^Set COPILOTFLEET_HOME to a folder\.$/],
  [
    "a symbolic link",
    async (root) => {
      await mkdir(`${root}-real`, { mode: 0o700 });
      await symlink(`${root}-real`, root);
    },
    /is a symbolic link/,
    /realpath/,
  ],
  ["a link to nothing", (root) => symlink(`${root}-nowhere`, root), /is a symbolic link/, /realpath/],
  ["writable for the group", (root) => makeWithMode(root, 0o770), /mode 0770/, /^chmod go-w /],
  ["writable for everybody", (root) => makeWithMode(root, 0o1777), /mode 1777/, /^chmod go-w /],
];

async function makeWithMode(path: string, mode: number): Promise<void> {
  await mkdir(path);
  await chmod(path, mode);
}

describe("the check of the state folder", () => {
  it.each(UNSAFE)(
    "a state folder that is %s is refused, both for reading and for writing",
    async (_, make, message, wayOut) => {
      const root = await temporaryRoot();
      await make(root);
      const before = await readdir(join(root, ".."), { recursive: true });
      const refusal = {
        code: "FLEET_STATE_UNSAFE",
        exit: 3,
        message: expect.stringMatching(message),
        suggestions: expect.arrayContaining([expect.stringMatching(wayOut)]),
      };
      const store = openStore("file", root);
      await expect(store.registry.read()).rejects.toMatchObject(refusal);
      await expect(store.registry.update((draft) => void Object.assign(draft.servers, {}))).rejects.toMatchObject(
        refusal,
      );
      await expect(store.sessions.create(sessionRecord("a"))).rejects.toMatchObject(refusal);
      await expect(store.sessions.read("a")).rejects.toMatchObject(refusal);
      await expect(store.sessions.update("a", () => undefined)).rejects.toMatchObject(refusal);
      await expect(store.sessions.delete("a")).rejects.toMatchObject(refusal);
      await expect(store.sessions.list()).rejects.toMatchObject(refusal);
      expect(await readdir(join(root, ".."), { recursive: true })).toEqual(before);
    },
  );

  it.runIf(IS_ROOT)("a state folder that belongs to another user is refused, even if the caller is root", async () => {
    const root = await temporaryRoot();
    await mkdir(root, { mode: 0o700 });
    await chown(root, 12_345, 12_345);
    expect(() => checkStateFolder(root)).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/belongs to uid 12345/),
        suggestions: [
          `sudo -u '#12345' env COPILOTFLEET_HOME=${root} copilotfleet ps`,
          "Or set COPILOTFLEET_HOME to a folder of your own.",
        ],
      }),
    );
  });

  it("a state folder below a path that is not a folder is refused", async () => {
    const root = await temporaryRoot();
    await writeFile(root, "");
    expect(() => checkStateFolder(join(root, "below"))).toThrow(
      expect.objectContaining({ code: "FLEET_STATE_UNSAFE", message: expect.stringContaining("below something") }),
    );
  });

  describe("the check of the folders above the state folder", () => {
    const isRefused = (root: string, env: NodeJS.ProcessEnv = {}) => {
      for (const check of [checkStateFolder, ensureStateFolder])
        expect(() => check(root, { env })).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNSAFE", exit: 3 }));
    };

    it("a state folder below a world-writable folder is refused with that folder's name and mode", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o777);
      const root = join(parent, "a", "state");
      isRefused(root);
      await mkdir(root, { recursive: true, mode: 0o700 });
      isRefused(root);
      expect(() => checkStateFolder(root)).toThrow(
        expect.objectContaining({
          message: expect.stringContaining(`"${parent}", which others can write (mode 0777)`),
          suggestions: expect.arrayContaining([`chmod go-w ${parent}`]),
        }),
      );
      expect(() => checkStateFolder(root, { env: { COPILOTFLEET_ALLOW_UNSAFE_PARENTS: "1" } })).not.toThrow();
      isRefused(root, { COPILOTFLEET_ALLOW_UNSAFE_PARENTS: "0" });
      // The modes that the operator accepts stay.
      restoreModes(root, { deep: false, env: { COPILOTFLEET_ALLOW_UNSAFE_PARENTS: "1" } });
      isRefused(root);
      expect(restoreModes(root, { deep: false, env: {} })).toEqual([{ path: parent, was: "0777" }]);
      expect(() => checkStateFolder(root, { env: {} })).not.toThrow();
    });

    it("a state folder below a sticky world-writable folder, such as /tmp, is accepted", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o1777);
      ensureStateFolder(join(parent, "state"));
    });

    it("a state folder is refused when a link in its path leads to a world-writable folder", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o777);
      await mkdir(join(parent, "real"));
      await symlink(join(parent, "real"), `${parent}-link`);
      isRefused(join(`${parent}-link`, "state"));
    });

    it("a state folder is accepted when our own link in its path leads to a safe folder", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o755);
      await symlink("state/.", `${parent}-link`);
      ensureStateFolder(join(`${parent}-link`, "deep", "state"));
      expect(await readdir(parent)).toEqual(["deep"]);
    });

    it("a state folder is refused when the links in its path form a loop", async () => {
      const root = await temporaryRoot();
      await symlink(`${root}-2`, `${root}-1`);
      await symlink(`${root}-1`, `${root}-2`);
      expect(() => checkStateFolder(join(`${root}-1`, "state"))).toThrow(
        expect.objectContaining({ message: expect.stringMatching(/links/) }),
      );
    });

    it.runIf(IS_ROOT)("a state folder below a folder or behind a link of another user is refused", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o755);
      await symlink(parent, `${parent}-link`);
      await lchown(`${parent}-link`, 12_345, 0);
      isRefused(join(`${parent}-link`, "state"));
      await chown(parent, 12_345, 0);
      isRefused(join(parent, "state"));
      expect(() => checkStateFolder(join(parent, "state"))).toThrow(/belongs to uid 12345/);
    });

    it.runIf(IS_ROOT)(
      "a state folder below a group-writable folder is refused, unless only root and we are in that group",
      async () => {
        const parent = await temporaryRoot();
        await makeWithMode(parent, 0o775);
        checkStateFolder(join(parent, "state"));
        await chown(parent, 0, 12_345);
        isRefused(join(parent, "state"));
      },
    );
  });

  describe.runIf(process.platform === "linux")("the state folder on a file system of the kernel", () => {
    it.each(["/proc/state", "/proc/self/deep/state", "/sys/state"])(
      "the state folder %s is refused, because the kernel provides its file system",
      (root) => {
        for (const check of [checkStateFolder, ensureStateFolder])
          expect(() => check(root)).toThrow(
            expect.objectContaining({ code: "FLEET_STATE_UNSAFE", message: expect.stringContaining("the kernel") }),
          );
      },
    );
  });

  it("a missing state folder and the missing folders above it are created with mode 0700", async () => {
    const root = join(await temporaryRoot(), "deep", "er");
    checkStateFolder(root);
    ensureStateFolder(root);
    for (const path of [root, join(root, ".."), join(root, "..", "..")])
      expect((await stat(path)).mode & 0o777).toBe(0o700);
    ensureStateFolder(root);
  });

  it("a state folder that others can read is accepted", async () => {
    const root = await temporaryRoot();
    await makeWithMode(root, 0o755);
    ensureStateFolder(root);
  });

  it("the command that repairs a state folder quotes the folder's name for the shell", async () => {
    const root = `${await temporaryRoot()} it's`;
    await makeWithMode(root, 0o777);
    expect(() => checkStateFolder(root)).toThrow(
      expect.objectContaining({ suggestions: [`chmod go-w '${root.replace("'", "'\\''")}'`] }),
    );
  });

  describe.runIf(process.platform === "linux")("the state folder on a network file system", () => {
    it.each([
      ["NFS", 0x6969],
      ["SMB", 0x517b],
      ["CIFS", 0xff534d42],
      // A 32-bit system returns the number as a signed integer.
      ["SMB2", 0xfe534d42 | 0],
    ])("a state folder on %s is refused unless COPILOTFLEET_ALLOW_NETWORK_FS is 1", async (name, type) => {
      const root = await temporaryRoot();
      ensureStateFolder(root);
      const check = (env: NodeJS.ProcessEnv) => () =>
        checkStateFolder(root, { files: { unfit: () => unfitType(type) }, env });
      expect(check({})).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNSAFE" }));
      expect(check({})).toThrow(name);
      expect(check({ COPILOTFLEET_ALLOW_NETWORK_FS: "0" })).toThrow(name);
      expect(check({ COPILOTFLEET_ALLOW_NETWORK_FS: "1" })).not.toThrow();
    });

    it("a state folder on this machine's local file system is accepted", async () => {
      const root = await temporaryRoot();
      ensureStateFolder(root);
      expect(() => checkStateFolder(root, { env: {} })).not.toThrow();
    });
  });

  it("every file and folder in the state folder is accessible only to its owner, whatever the umask is", async () => {
    const root = await temporaryRoot();
    const umask = process.umask(0o000);
    try {
      const store = openStore("file", root);
      await store.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
      await store.sessions.create(sessionRecord("a"));
      await store.sessions.update("a", (draft) => void draft.turns++);
    } finally {
      process.umask(umask);
    }
    for (const name of await readdir(root, { recursive: true })) {
      const stats = await stat(join(root, name));
      // A revision loses its write bit when a writer builds on it.
      expect([0o700, 0o600, 0o400], name).toContain(stats.mode & 0o777);
      expect(stats.isDirectory(), name).toBe((stats.mode & 0o100) !== 0);
    }
  });

  it("a state folder is refused at once if others can write to it, and soon if they can write to its parent", async () => {
    const root = await temporaryRoot();
    const store = openStore("file", root);
    await store.sessions.create(sessionRecord("a"));
    await store.sessions.read("a");
    await chmod(root, 0o777);
    await expect(store.sessions.read("a")).rejects.toMatchObject({ code: "FLEET_STATE_UNSAFE" });
    await chmod(root, 0o700);
    await store.sessions.read("a");
    await chmod(join(root, ".."), 0o777);
    await expect
      .poll(() => store.sessions.read("a").catch(({ code }: { code: string }) => code))
      .toBe("FLEET_STATE_UNSAFE");
  });

  it("the same state is found after the state folder has been moved", async () => {
    const root = await temporaryRoot();
    await openStore("file", root).registry.update(
      (draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }),
    );
    await rename(root, `${root}-moved`);
    expect(Object.keys((await openStore("file", `${root}-moved`).registry.read()).servers)).toEqual(["s1"]);
    expect(await openStore("file", root).registry.read()).toEqual({ servers: {} });
  });
});

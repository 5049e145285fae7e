import { chmod, chown, lchown, mkdir, readdir, rename, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import { checkStateFolder, ensureStateFolder } from "../../src/store/file/state-folder.js";
import { serverRecord, sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const IS_ROOT = process.getuid?.() === 0;

/** What is wrong with a state folder, how to make it so, and what the message and the way out have to say. */
const UNSAFE: [string, (root: string) => Promise<void>, RegExp, RegExp][] = [
  ["a file", (root) => writeFile(root, ""), /is not a folder/, /^mv /],
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

describe("the state folder", () => {
  it.each(UNSAFE)("that is %s is refused, for reading and for writing", async (_, make, message, wayOut) => {
    const root = await temporaryRoot();
    await make(root);
    const before = await readdir(join(root, ".."), { recursive: true });
    const refusal = {
      code: "FLEET_STATE_UNSAFE",
      exit: 3,
      message: expect.stringMatching(message),
      suggestions: expect.arrayContaining([expect.stringMatching(wayOut)]),
    };
    const store = openFileStore(root);
    await expect(store.readRegistry()).rejects.toMatchObject(refusal);
    await expect(store.updateRegistry((draft) => void Object.assign(draft.servers, {}))).rejects.toMatchObject(refusal);
    await expect(store.createSession(sessionRecord("a"))).rejects.toMatchObject(refusal);
    await expect(store.readSession("a")).rejects.toMatchObject(refusal);
    await expect(store.updateSession("a", () => undefined)).rejects.toMatchObject(refusal);
    await expect(store.deleteSession("a")).rejects.toMatchObject(refusal);
    await expect(store.listSessions()).rejects.toMatchObject(refusal);
    expect(await readdir(join(root, ".."), { recursive: true })).toEqual(before);
  });

  it.runIf(IS_ROOT)("of another user is refused, for root too", async () => {
    const root = await temporaryRoot();
    await mkdir(root, { mode: 0o700 });
    await chown(root, 12_345, 12_345);
    expect(() => checkStateFolder(root)).toThrow(/belongs to uid 12345/);
  });

  it("below something that is not a folder is refused", async () => {
    const root = await temporaryRoot();
    await writeFile(root, "");
    expect(() => checkStateFolder(join(root, "below"))).toThrow(
      expect.objectContaining({ code: "FLEET_STATE_UNSAFE", message: expect.stringContaining("below something") }),
    );
  });

  describe("below another folder", () => {
    const isRefused = (root: string, env: NodeJS.ProcessEnv = {}) => {
      for (const check of [checkStateFolder, ensureStateFolder])
        expect(() => check(root, { env })).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNSAFE", exit: 3 }));
    };

    it("that everybody can write is refused, with that folder and its mode", async () => {
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
    });

    it("that everybody can write is accepted when it is sticky, as /tmp is", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o1777);
      ensureStateFolder(join(parent, "state"));
    });

    it("that a link in the path leads to is refused when everybody can write there", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o777);
      await mkdir(join(parent, "real"));
      await symlink(join(parent, "real"), `${parent}-link`);
      isRefused(join(`${parent}-link`, "state"));
    });

    it("is accepted when a link of ours in the path leads to a safe folder", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o755);
      await symlink("state/.", `${parent}-link`);
      ensureStateFolder(join(`${parent}-link`, "deep", "state"));
      expect(await readdir(parent)).toEqual(["deep"]);
    });

    it("is refused when the links in the path go in a circle", async () => {
      const root = await temporaryRoot();
      await symlink(`${root}-2`, `${root}-1`);
      await symlink(`${root}-1`, `${root}-2`);
      expect(() => checkStateFolder(join(`${root}-1`, "state"))).toThrow(
        expect.objectContaining({ message: expect.stringMatching(/links/) }),
      );
    });

    it.runIf(IS_ROOT)("of another user is refused, and so is one that a link of another user leads to", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o755);
      await symlink(parent, `${parent}-link`);
      await lchown(`${parent}-link`, 12_345, 0);
      isRefused(join(`${parent}-link`, "state"));
      await chown(parent, 12_345, 0);
      isRefused(join(parent, "state"));
      expect(() => checkStateFolder(join(parent, "state"))).toThrow(/belongs to uid 12345/);
    });

    it.runIf(IS_ROOT)("that a group can write is refused, unless only root and we are in that group", async () => {
      const parent = await temporaryRoot();
      await makeWithMode(parent, 0o775);
      checkStateFolder(join(parent, "state"));
      await chown(parent, 0, 12_345);
      isRefused(join(parent, "state"));
    });
  });

  describe.runIf(process.platform === "linux")("on a file system of the kernel", () => {
    it.each(["/proc/state", "/proc/self/deep/state", "/sys/state"])("is refused at once: %s", (root) => {
      for (const check of [checkStateFolder, ensureStateFolder])
        expect(() => check(root)).toThrow(
          expect.objectContaining({ code: "FLEET_STATE_UNSAFE", message: expect.stringContaining("the kernel") }),
        );
    });
  });

  it("may be missing, and is then made for its owner alone, with all above it", async () => {
    const root = join(await temporaryRoot(), "deep", "er");
    checkStateFolder(root);
    ensureStateFolder(root);
    for (const path of [root, join(root, ".."), join(root, "..", "..")])
      expect((await stat(path)).mode & 0o777).toBe(0o700);
    ensureStateFolder(root);
  });

  it("may be readable for others", async () => {
    const root = await temporaryRoot();
    await makeWithMode(root, 0o755);
    ensureStateFolder(root);
  });

  it("with a name that a shell would take apart is quoted in the command that mends it", async () => {
    const root = `${await temporaryRoot()} it's`;
    await makeWithMode(root, 0o777);
    expect(() => checkStateFolder(root)).toThrow(
      expect.objectContaining({ suggestions: [`chmod go-w '${root.replace("'", "'\\''")}'`] }),
    );
  });

  describe.runIf(process.platform === "linux")("on a network file system", () => {
    it.each([
      ["NFS", 0x6969],
      ["SMB", 0x517b],
      ["CIFS", 0xff534d42],
      // The number as a signed one, as a 32-bit system gives it.
      ["SMB2", 0xfe534d42 | 0],
    ])("is refused: %s", async (name, type) => {
      const root = await temporaryRoot();
      ensureStateFolder(root);
      const check = (env: NodeJS.ProcessEnv) => () => checkStateFolder(root, { fileSystemType: () => type, env });
      expect(check({})).toThrow(expect.objectContaining({ code: "FLEET_STATE_UNSAFE" }));
      expect(check({})).toThrow(name);
      expect(check({ COPILOTFLEET_ALLOW_NETWORK_FS: "0" })).toThrow(name);
      expect(check({ COPILOTFLEET_ALLOW_NETWORK_FS: "1" })).not.toThrow();
    });

    it("is what the real file system is asked for", async () => {
      const root = await temporaryRoot();
      ensureStateFolder(root);
      expect(() => checkStateFolder(root, { env: {} })).not.toThrow();
    });
  });

  it("and everything in it is for the owner alone, whatever the umask", async () => {
    const root = await temporaryRoot();
    const umask = process.umask(0o000);
    try {
      const store = openFileStore(root);
      await store.updateRegistry((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
      await store.createSession(sessionRecord("a"));
      await store.updateSession("a", (draft) => void draft.turns++);
    } finally {
      process.umask(umask);
    }
    for (const name of await readdir(root, { recursive: true })) {
      const stats = await stat(join(root, name));
      // A revision that another one was built on has lost its write bit.
      expect([0o700, 0o600, 0o400], name).toContain(stats.mode & 0o777);
      expect(stats.isDirectory(), name).toBe((stats.mode & 0o100) !== 0);
    }
  });

  it("can be moved, and the state moves with it", async () => {
    const root = await temporaryRoot();
    await openFileStore(root).updateRegistry((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
    await rename(root, `${root}-moved`);
    expect(Object.keys((await openFileStore(`${root}-moved`).readRegistry()).servers)).toEqual(["s1"]);
    expect(await openFileStore(root).readRegistry()).toEqual({ servers: {} });
  });
});

it("a umask that takes the owner's write bit does not look like the mark of an accepted revision", async () => {
  const root = await temporaryRoot();
  const store = openFileStore(root);
  await store.updateRegistry((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
  const umask = process.umask(0o277);
  try {
    await store.updateRegistry((draft) => void Object.assign(draft.servers, { s2: serverRecord("s2") }));
  } finally {
    process.umask(umask);
  }
  expect((await stat(join(root, "registry", "0000000000000002.json"))).mode & 0o777).toBe(0o600);
});

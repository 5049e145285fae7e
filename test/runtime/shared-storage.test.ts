import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { linkToPlace, makeHostFolder, placePath, type StatePlace } from "../../src/runtime/files/shared-storage.js";
import { type Fetch, fetchSession } from "../../src/sessions/takeover.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

let shared: string;
let a: StatePlace;
let b: StatePlace;

beforeEach(async () => {
  shared = await temporaryRoot();
  a = { shared, host: "a", group: "alice" };
  b = { shared, host: "b", group: "alice" };
});

function plant(folder: string, id: string, history: string): void {
  mkdirSync(join(folder, id, "files"), { recursive: true });
  writeFileSync(join(folder, id, "events.jsonl"), history);
  writeFileSync(join(folder, id, "files", "note"), "kept");
  writeFileSync(join(folder, id, "inuse.77.lock"), "");
}

const historyAt = (place: StatePlace, id = "s") => readFileSync(join(placePath(place), id, "events.jsonl"), "utf8");

async function take(over: Partial<Fetch> = {}): Promise<void> {
  await fetchSession({ id: "s", mark: "one", from: a, to: b, hasHistory: true, check: async () => undefined, ...over });
}

describe("taking over a session", () => {
  it("a takeover copies a session without the links and pipes that its agent left in the folder", async () => {
    plant(placePath(a), "s", "history");
    const folder = join(placePath(a), "s");
    const outside = join(shared, "outside");
    mkdirSync(outside);
    writeFileSync(join(outside, "secret"), "of another user");
    symlinkSync(outside, join(folder, "linked"));
    symlinkSync(join(outside, "secret"), join(folder, "secret"));
    execFileSync("mkfifo", [join(folder, "pipe")]);
    await take();
    expect(readdirSync(join(placePath(b), "s")).sort()).toEqual(["events.jsonl", "files"]);
  });

  it("a takeover leaves a session where it is when the session's agent made folders that are too deep to copy", async () => {
    plant(placePath(a), "s", "history");
    mkdirSync(join(placePath(a), "s", ...Array.from({ length: 70 }, () => "d")), { recursive: true });
    await expect(take()).rejects.toMatchObject({
      code: "FLEET_STORAGE_UNUSABLE",
      message: expect.stringContaining(`${join(placePath(a), "s")} has more than`),
    });
    expect(historyAt(a)).toBe("history");
    expect(existsSync(placePath(b))).toBe(false);
  });

  it("a takeover fails if the session has had turns but its folder is missing", async () => {
    plant(placePath(b), "s", "of an earlier time");
    await expect(take()).rejects.toMatchObject({ code: "FLEET_STORAGE_UNUSABLE" });
    expect(historyAt(b)).toBe("of an earlier time");
    expect(existsSync(join(placePath(a), "s"))).toBe(false);
    // A session that never had a turn may have no folder.
    await take({ hasHistory: false });
    expect(existsSync(join(placePath(b), "s"))).toBe(false);
  });
});

describe("a home on shared storage", () => {
  let home: string;
  beforeEach(async () => {
    home = join(await temporaryRoot(), "servers", "alice", "home");
    mkdirSync(home, { recursive: true });
  });

  it("linkToPlace moves no session out of another user's home, even if the agent linked its session-state to that home", async () => {
    const root = await temporaryRoot();
    const [home, bobs] = [join(root, "alice", "home"), join(root, "bob", "home", "session-state")];
    mkdirSync(home, { recursive: true });
    plant(bobs, "of-bob", "history");
    symlinkSync(bobs, join(home, "session-state"));
    await makeHostFolder(shared, "a");
    await linkToPlace(home, a);
    expect(readlinkSync(join(home, "session-state"))).toBe(placePath(a));
    expect(readdirSync(placePath(a))).toEqual([]);
    expect(readdirSync(bobs)).toEqual(["of-bob"]);
  });

  it("linkToPlace moves a home's local sessions to the shared folder, except sessions that are already there", async () => {
    plant(join(home, "session-state"), "s", "local");
    plant(join(home, "session-state"), "t", "local");
    plant(placePath(a), "t", "newer");
    for (let time = 0; time < 2; time++) await linkToPlace(home, a);
    expect(readlinkSync(join(home, "session-state"))).toBe(placePath(a));
    expect([historyAt(a, "s"), historyAt(a, "t")]).toEqual(["local", "newer"]);
  });

  it("linkToPlace loses no session when the path of the shared folder changes", async () => {
    plant(placePath(a), "s", "history");
    await linkToPlace(home, a);
    const alias = `${shared}-alias`;
    symlinkSync(shared, alias);
    await linkToPlace(home, { ...a, shared: alias });
    expect(historyAt(a)).toBe("history");
    expect(readFileSync(join(home, "session-state", "s", "events.jsonl"), "utf8")).toBe("history");
  });

  it("linkToPlace under a new host name leaves the sessions below the old host name where they are", async () => {
    plant(placePath(a), "s", "history");
    await linkToPlace(home, a);
    await makeHostFolder(shared, b.host);
    await linkToPlace(home, b);
    expect(historyAt(a)).toBe("history");
    expect(existsSync(join(home, "session-state", "s"))).toBe(false);
  });
});

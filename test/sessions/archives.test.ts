import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { EventType } from "../../src/base/event.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { ExportedSession } from "../../src/hosts/sessions/archives.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { GOOD_ARCHIVE, HOSTILE_ARCHIVES } from "../fixtures/sessions/hostile-archives.js";
import { unused } from "../fixtures/sessions/unused.js";

const model = await startHeldModel();
const from = testFleet(model.env);
const to = testFleet(model.env);
let source: Fleet;
let target: Fleet;
beforeAll(async () => {
  source = await Fleet.open({ env: from.env, cwd: from.folder });
  target = await Fleet.open({ env: to.env, cwd: to.folder });
});
afterAll(async () => {
  await source.close();
  await target.close();
  await model.close();
});

const archivePath = () => join(from.folder, unused("archive"));

async function historyOf(fleet: Fleet, id: string, user: string): Promise<Buffer> {
  const { serverId } = await fleet.sessions.get(id, { user });
  return readFileSync(join(fleet.stateRoot, "servers", serverId, "home", "session-state", id, "events.jsonl"));
}

/** All files and folders of a fleet, except its audit log, to which earlier actions may still add. */
const tree = (fleet: Fleet) =>
  (readdirSync(fleet.stateRoot, { recursive: true }) as string[]).filter((path) => !path.startsWith("events")).sort();

/** The outcomes of the events about a session, in the order of the log. */
async function outcomes(fleet: Fleet, type: EventType, id: string): Promise<string[]> {
  const events = await fleet.events.list({ type });
  return events.filter(({ sessionId }) => sessionId === id).map(({ outcome }) => outcome);
}

describe("archives of sessions", () => {
  it("a session imported into another fleet for another user keeps its history, and the next turn continues it", async () => {
    const id = unused("moved");
    await from.ok(["create", "--user", "ann", "--id", id, "--purpose", "review", "--prompt", "one"]);
    await from.ok(["send", id, "two", "--user", "ann"]);
    const { home } = await from.record("ann");
    writeFileSync(join(home, "session-state", id, "files", "notes.txt"), "notes");
    const file = archivePath();
    const exported = await from.json<ExportedSession>(["export", id, "--user", "ann", "--output", file]);
    expect(exported).toMatchObject({ session: { id, owner: "ann" }, file, bytes: statSync(file).size });
    expect(statSync(file).mode & 0o777).toBe(0o600);
    const history = await historyOf(source, id, "ann");
    const { session } = await to.json<{ session: SessionView }>(["import", file, "--user", "ben"]);
    expect(session).toMatchObject({ id, owner: "ben", purpose: "review", kind: "private" });
    expect(await historyOf(target, id, "ben")).toEqual(history);
    expect((await target.sessions.use(id, "three", { user: "ben" })).text).toBe("[turn 3] three");
    const files = join((await to.record("ben")).home, "session-state", id, "files");
    expect(readFileSync(join(files, "notes.txt"), "utf8")).toBe("notes");
    await expect(target.sessions.import(file, { user: "ben" })).rejects.toMatchObject({ code: "FLEET_SESSION_EXISTS" });
  });

  it("a session that is imported under another id keeps everything but its id", async () => {
    const id = unused("first");
    await source.sessions.create({ user: "ann", sessionId: id });
    await source.sessions.use(id, "one", { user: "ann" });
    const file = archivePath();
    await source.sessions.export(id, { user: "ann", output: file });
    const history = (await historyOf(source, id, "ann")).toString();
    const other = unused("second");
    expect(await source.sessions.import(file, { user: "ann", sessionId: other })).toMatchObject({ id: other });
    expect((await historyOf(source, other, "ann")).toString()).toBe(history.replace(`"${id}"`, `"${other}"`));
    expect((await source.sessions.use(other, "two", { user: "ann" })).text).toBe("[turn 2] two");
    expect((await source.sessions.use(id, "two", { user: "ann" })).text).toBe("[turn 2] two");
  });

  it("an export during a turn waits for the turn's end, and the archive contains the complete turn", async () => {
    const id = unused("busy");
    await source.sessions.create({ user: "ann", sessionId: id });
    const turn = source.sessions.use(id, "!hold me", { user: "ann" });
    const text = turn.then((reply) => reply.text);
    await eventually("the turn", () => model.held("me") === 1);
    const file = archivePath();
    await expect(source.sessions.export(id, { user: "ann", output: file, wait: 0 })).rejects.toMatchObject({
      code: "FLEET_SESSION_BUSY",
    });
    const exporting = source.sessions.export(id, { user: "ann", output: file });
    model.release("me");
    expect(await text).toContain("me");
    await exporting;
    await target.sessions.import(file, { user: "cleo" });
    const { entries } = await target.sessions.transcript(id, { user: "cleo" });
    expect(entries.map(({ role }) => role)).toEqual(["user", "assistant"]);
    expect((await target.sessions.use(id, "and", { user: "cleo" })).text).toBe("[turn 2] and");
  });

  it("a session that never had a turn can be exported and imported", async () => {
    const id = unused("quiet");
    await source.sessions.create({ user: "ann", sessionId: id });
    const file = archivePath();
    await source.sessions.export(id, { user: "ann", output: file });
    await target.sessions.import(file, { user: "dora" });
    expect((await target.sessions.use(id, "one", { user: "dora" })).text).toBe("[turn 1] one");
  });

  it("only the owner of a session may export it, and an export never replaces a file", async () => {
    const id = unused("shared");
    await source.sessions.create({ user: "ann", sessionId: id, members: ["ben"] });
    const file = archivePath();
    const refused = { code: "FLEET_SESSION_NOT_FOUND" };
    await expect(source.sessions.export(id, { user: "ben", output: file })).rejects.toMatchObject(refused);
    await expect(source.sessions.export(id, { user: "eve", output: file })).rejects.toMatchObject(refused);
    writeFileSync(file, "mine");
    const exists = { code: "FLEET_USAGE_INVALID", message: expect.stringContaining("exists already") };
    await expect(source.sessions.export(id, { user: "ann", output: file })).rejects.toMatchObject(exists);
    expect(readFileSync(file, "utf8")).toBe("mine");
    await expect(source.sessions.export(id, { user: "ann", output: join(file, "below") })).rejects.toThrow();
    expect(await outcomes(source, "session.exported", id)).toEqual(["ok", "failed"]);
  });

  it("an import fails and leaves no session if the agent has put a file at the session's path", async () => {
    const file = archivePath();
    writeFileSync(file, GOOD_ARCHIVE);
    await target.sessions.import(file, { user: "fred", sessionId: unused("good") });
    const { home } = await to.record("fred");
    const id = unused("planted");
    const planted = join(home, "session-state", id);
    writeFileSync(planted, "a file of the agent");
    await expect(target.sessions.import(file, { user: "fred", sessionId: id })).rejects.toMatchObject({
      code: "FLEET_SESSION_EXISTS",
    });
    expect(await target.sessions.list({ user: "fred" })).toHaveLength(1);
    expect(await outcomes(target, "session.imported", id)).toEqual(["ok", "failed"]);
    expect(readdirSync(join(target.stateRoot, "servers")).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("an import refuses a path that does not exist, and the path of a folder", async () => {
    const invalid = { code: "FLEET_USAGE_INVALID" };
    await expect(target.sessions.import("/nonexistent", { user: "ann" })).rejects.toMatchObject(invalid);
    await expect(target.sessions.import(to.folder, { user: "ann" })).rejects.toMatchObject(invalid);
  });

  it.each(Object.entries(HOSTILE_ARCHIVES))("import refuses %s, and writes nothing", async (_, [archive, refusal]) => {
    const file = archivePath();
    writeFileSync(file, archive);
    const before = tree(target);
    await expect(target.sessions.import(file, { user: "mallory" })).rejects.toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message: expect.stringMatching(refusal),
    });
    expect(tree(target)).toEqual(before);
    expect(existsSync(join(target.stateRoot, "..", "evil"))).toBe(false);
  });
});

import { execFileSync } from "node:child_process";
import { appendFileSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { InputHistory } from "../../src/cli/chat/input-history.js";
import { eraseLeft } from "../../src/data/purge/left.js";
import { PURGE_STEPS } from "../../src/data/purge/purge.js";
import { Events } from "../../src/events/events.js";
import { Pseudonyms } from "../../src/events/pseudonyms.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { ExportedUser } from "../../src/fleet/groups/users/export-user.js";
import { openParts } from "../../src/fleet/parts.js";
import type { FleetEvent } from "../../src/model/events/event.js";
import { serverIdOf } from "../../src/model/ids.js";
import type { PurgeReceipt } from "../../src/peers/purge.js";
import type { UserEntry } from "../../src/peers/users.js";
import { NEVER } from "../../src/runtime/clock.js";
import { chatHistoryPath } from "../../src/runtime/files/user-places.js";
import { isAlive } from "../../src/runtime/process/process-table.js";
import { compact } from "../../src/store/file/events/compact.js";
import { LogFiles } from "../../src/store/file/events/files.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { found } from "../fixtures/found.js";
import { unused } from "../fixtures/sessions/unused.js";

const purger = bundleFixture("purger");
const at = testFleet();
let fleet: Fleet;
beforeAll(async () => {
  fleet = await Fleet.open({ env: at.env, cwd: at.folder });
});
afterAll(() => fleet.close());

let tries = 0;
/** A new user, a unique word for the user's prompts (`canary`), and all words that a purge of the user must remove. */
function leaver() {
  const number = ++tries;
  const user = `zoe.quux${number}x`;
  return { user, words: [user, `zoe-quux${number}x`, `plover${number}x`], canary: `plover${number}x` };
}

async function talk(user: string, prompt: string): Promise<string> {
  // Users like to name their sessions after themselves.
  const id = unused(`${user.replace(".", "-")}-talk`);
  await fleet.sessions.leave(await fleet.sessions.create({ user, sessionId: id }));
  await fleet.sessions.use(id, prompt, { user });
  return id;
}

/** Removes the records of a user from the store and leaves a note, as a purge does when it gives up on a lost host. */
async function giveUp(user: string, ids: readonly string[]): Promise<string[]> {
  // List the events, because this first writes the events of the turns so far.
  await fleet.events.list();
  const store = openFileStore(fleet.stateRoot);
  const { of } = await Pseudonyms.open(fleet.stateRoot, store);
  const left = [user, serverIdOf(user), ...ids].map(of);
  await store.purges.begin({ user: unused("~mark"), begunAt: new Date().toISOString(), pending: [null], left });
  await store.sessions.deleteMany(ids, () => true);
  await store.registry.update(({ servers }) => void delete servers[serverIdOf(user)]);
  await store.placements.delete(user);
  await store.close();
  return left;
}

/** Moves all events so far into one more segment of the audit log. */
async function endSegment(): Promise<void> {
  const files = new LogFiles(fleet.stateRoot);
  // The compaction leaves the newest batches alone, so add some.
  for (let count = 0; count < 10; count++) await fleet.tokens.issue("ann");
  await compact(files, 1);
}

/** The files of the returning host, outside of its store, that contain one of the words. */
function placesOf(words: readonly string[]): string[] {
  return ["servers", "usage", "events"].flatMap((folder) => found(join(fleet.stateRoot, folder), words));
}

async function notesLeft(): Promise<number> {
  const store = openFileStore(fleet.stateRoot);
  const { length } = await store.purges.list();
  await store.close();
  return length;
}

describe("a purge", () => {
  it("a purge erases all data of a user and no data of others, and its receipt counts the erased items", async () => {
    const { user, words, canary } = leaver();
    await talk(user, `${canary} one`);
    const keyed = unused("keyed");
    await fleet.sessions.leave(await fleet.sessions.create({ user, sessionId: keyed, purpose: canary }));
    await fleet.sessions.use(keyed, canary, { user, key: "key-1" });
    await fleet.tokens.issue(user);
    const chat = new InputHistory(fleet.stateRoot, user);
    chat.load();
    chat.add(canary);
    const team = unused("team");
    await fleet.sessions.leave(await fleet.sessions.create({ user: "ann", sessionId: team, members: [user, "ben"] }));
    await fleet.sessions.use(team, "of all", { user });
    await at.ok(["lock", team, "--user", user, "--ttl", "300s"]);
    expect(found(fleet.stateRoot, words).length).toBeGreaterThan(10);

    const used = async () => (await fleet.usage.report({ since: "1h" })).total;
    const before = await used();
    expect(before.turns).toBeGreaterThan(0);

    const expected = { user, sessions: 2, servers: 1, tokens: 1, remains: [] };
    const foreseen = await at.json<PurgeReceipt>(["user", "purge", user, "--dry-run"]);
    expect(foreseen).toMatchObject({ ...expected, dryRun: true });
    expect(await fleet.sessions.list({ user })).toHaveLength(3);

    const receipt = await at.json<PurgeReceipt>(["user", "purge", user, "--yes"]);
    expect(receipt).toMatchObject({ ...expected, dryRun: false });
    // The bytes include the histories.
    expect(receipt.bytes).toBeGreaterThan(foreseen.bytes / 2);
    expect(found(fleet.stateRoot, words)).toEqual([]);
    // The ledger keeps the user's turns, under a pseudonym.
    expect(await used()).toEqual(before);
    expect(found(join(fleet.stateRoot, "usage"), ['"user":"~']).length).toBeGreaterThan(0);
    expect(await fleet.events.verify()).toMatchObject({ ok: true, brokenAt: null });
    const { users } = await at.json<{ users: UserEntry[] }>(["user", "list"]);
    expect(users.map((each) => each.user)).not.toContain(user);

    expect(await fleet.sessions.get(team, { user: "ann" })).toMatchObject({ members: ["ben"], lease: null });
    expect((await fleet.sessions.use(team, "and", { user: "ann" })).text).toBe("[turn 2] and");
    // After the purge, a user with this name may use the fleet again.
    await talk(user, "hello");
    expect(await fleet.sessions.list({ user })).toHaveLength(1);
    await fleet.users.purge(user);
  });

  it("an unfinished purge keeps the user out and makes doctor fail until gc finishes it", async () => {
    const { user, words } = leaver();
    await talk(user, "hello");
    const store = openFileStore(fleet.stateRoot);
    await store.purges.begin({ user, begunAt: new Date().toISOString(), pending: [null] });
    await store.close();
    await fleet.servers.stop([(await at.record(user)).id], { force: true });
    const refused = { code: "FLEET_PURGE_UNDER_WAY" };
    await expect(fleet.sessions.create({ user })).rejects.toMatchObject(refused);
    await expect(fleet.servers.spawn(user)).rejects.toMatchObject(refused);
    const ran = await at.run(["doctor", "--quick", "--json"]);
    const check = ran.json<DoctorResult>().checks.find(({ name }) => name === "purges");
    expect(check).toMatchObject({ level: "failed", fix: `copilotfleet user purge ${user}` });
    await at.ok(["gc"]);
    expect(found(fleet.stateRoot, words)).toEqual([]);
    expect(await fleet.events.verify()).toMatchObject({ ok: true, brokenAt: null });
    await talk(user, "hello");
    await fleet.users.purge(user);
  });

  it("in the audit log, a purge also replaces the ids of sessions that another host has already erased", async () => {
    const { user, words } = leaver();
    const id = `${words[1]}-erased-elsewhere`;
    await talk(user, "hello");
    const config = { events: { retentionMs: 1e12 } };
    const [stateRoot, warn] = [fleet.stateRoot, () => undefined];
    const events = new Events({ store: { hosts: null }, config, stateRoot, via: "library", warn });
    await events.record({ type: "session.evicted", sessionId: id });
    expect(found(join(fleet.stateRoot, "events"), [id])).not.toEqual([]);
    const store = openFileStore(fleet.stateRoot);
    // Since then, ann has used the id of another of these sessions again.
    const again = unused("used-again");
    await fleet.sessions.leave(await fleet.sessions.create({ user: "ann", sessionId: again }));
    await fleet.sessions.use(again, "one", { user: "ann" });
    const traces = () => ["usage", "events"].map((folder) => found(join(fleet.stateRoot, folder), [again]).length);
    await fleet.events.list();
    expect(traces()).not.toContain(0);
    await store.purges.begin({ user, begunAt: new Date().toISOString(), pending: [null], sessions: [id, again] });
    await store.close();
    await at.ok(["gc"]);
    expect(found(fleet.stateRoot, [...words, id])).toEqual([]);
    expect(traces()).not.toContain(0);
  });

  it("a purge that is not complete appears in the metrics of serve, with the time when it began", async () => {
    const { user } = leaver();
    const begunAt = new Date(Date.now() - 3_600_000).toISOString();
    const store = openFileStore(fleet.stateRoot);
    await store.purges.begin({ user, begunAt, pending: ["lost-host"] });
    await store.close();
    const serving = await serve(at, { env: FAST_HEALTH });
    await eventually("the purge", async () => (await serving.metric("purges_unfinished")) === 1);
    expect(await serving.metric("purges_oldest_timestamp_seconds")).toBe(Date.parse(begunAt) / 1000);
    await fleet.users.purge(user);
    await eventually("the end of the purge", async () => (await serving.metric("purges_unfinished")) === 0);
    expect(await serving.metric("purges_oldest_timestamp_seconds")).toBe(0);
    await serving.end();
  });

  it.each([...PURGE_STEPS, "done"])("a purge killed before the step %s is finished by the next purge", async (step) => {
    const { user, words, canary } = leaver();
    await talk(user, canary);
    await fleet.tokens.issue(user);
    const run = () => execFileSync(process.execPath, [purger, at.folder, user, step], { env: at.env, stdio: "pipe" });
    expect(run).toThrow(expect.objectContaining({ signal: "SIGKILL" }));
    expect(found(fleet.stateRoot, words)).not.toEqual([]);
    expect((await fleet.users.purge(user)).remains).toEqual([]);
    expect(found(fleet.stateRoot, words)).toEqual([]);
    expect(await fleet.events.verify()).toMatchObject({ ok: true, brokenAt: null });
  });
});

describe("a host that a purge gave up on, when it comes back", () => {
  it("a host that a purge gave up on erases the user's data on its return, in all segments of the audit log", async () => {
    const { user, words, canary } = leaver();
    const id = await talk(user, canary);
    await endSegment();
    await endSegment();
    const { open, segments } = new LogFiles(fleet.stateRoot);
    expect(readdirSync(segments).length).toBeGreaterThan(1);
    expect(found(segments, words)).not.toEqual([]);
    expect(found(open, words)).toEqual([]);
    await giveUp(user, [id]);
    await at.ok(["gc"]);
    expect(await notesLeft()).toBe(0);
    expect(placesOf(words)).toEqual([]);
    expect(await fleet.events.verify()).toMatchObject({ ok: true, brokenAt: null });
  });

  it("a returning host ends a purged user's running server, and skips damaged lines of the ledger", async () => {
    const { user, words, canary } = leaver();
    const id = await talk(user, canary);
    const server = await at.record(user);
    const ledger = join(fleet.stateRoot, "usage");
    const newest = readdirSync(ledger).findLast((name) => name.endsWith(".jsonl")) ?? "";
    appendFileSync(join(ledger, newest), '\n{"user":"\0"}\n{"user":"\\q"}\n');
    const left = await giveUp(user, [id]);
    const { sessions, stateRoot, close } = openParts({ env: at.env, cwd: at.folder });
    await eraseLeft({ sessions, stateRoot, signal: NEVER }, left);
    await close();
    expect(server.process !== null && isAlive(server.process)).toBe(false);
    expect(placesOf(words)).toEqual([]);
  });

  it("if gc on a returning host cannot erase one purged user, it warns, erases the other, and retries next time", async () => {
    const [kept, erased] = [leaver(), leaver()];
    for (const { user, canary } of [kept, erased]) await giveUp(user, [await talk(user, canary)]);
    const chat = chatHistoryPath(fleet.stateRoot, kept.user);
    mkdirSync(chat, { recursive: true });
    const ran = await at.run(["gc"]);
    expect(ran).toMatchObject({ code: 0, stderr: expect.stringContaining("A purge could not be finished") });
    expect(placesOf(kept.words)).not.toEqual([]);
    expect(placesOf(erased.words)).toEqual([]);
    rmdirSync(chat);
    await at.ok(["gc"]);
    expect(await notesLeft()).toBe(0);
    expect(placesOf(kept.words)).toEqual([]);
  });
});

describe("the export of a user", () => {
  it("a user's export contains each session as an importable archive, and all other data as JSON without tokens", async () => {
    const { user, canary } = leaver();
    const id = await talk(user, canary);
    const { token, id: tokenId } = await fleet.tokens.issue(user);
    const folder = join(at.folder, unused("export"));
    const exported = await at.json<ExportedUser>(["user", "export", user, "--output", folder]);
    expect(exported).toEqual({ user, folder, sessions: [id], remains: [] });
    const text = readFileSync(join(folder, "user.json"), "utf8");
    expect(JSON.parse(text)).toMatchObject({ user, tokens: [{ id: tokenId }], sessions: [{ id }] });
    expect(found(folder, [token])).toEqual([]);
    expect(JSON.parse(readFileSync(join(folder, "usage.json"), "utf8")).usage).toMatchObject([{ user, turns: 1 }]);
    const { events } = JSON.parse(readFileSync(join(folder, "events.json"), "utf8")) as { events: FleetEvent[] };
    const types = new Set(events.map(({ type }) => type));
    expect([...types]).toEqual(expect.arrayContaining(["turn.ended", "user.exported", "session.exported"]));
    await fleet.users.purge(user);
    await fleet.sessions.import(join(folder, "sessions", `${id}.tar.gz`), { user: "heir" });
    expect((await fleet.sessions.use(id, "and", { user: "heir" })).text).toBe("[turn 2] and");
    expect(await fleet.events.list({ user: "heir", type: "session.imported" })).toMatchObject([{ sessionId: id }]);
  });

  it("a user's export refuses a folder that is not empty, and a user whom the fleet does not know", async () => {
    const folder = join(at.folder, unused("full"));
    mkdirSync(folder);
    writeFileSync(join(folder, "mine"), "mine");
    await talk("ann", "hello");
    const notEmpty = { code: "FLEET_USAGE_INVALID", message: expect.stringContaining("not empty") };
    await expect(fleet.users.export("ann", { output: folder })).rejects.toMatchObject(notEmpty);
    const unknown = { code: "FLEET_USER_NOT_FOUND" };
    await expect(fleet.users.export("nobody", { output: `${folder}-2` })).rejects.toMatchObject(unknown);
  });
});

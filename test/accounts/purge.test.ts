import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Events } from "../../src/accounts/audit/events.js";
import type { FleetEvent } from "../../src/base/event.js";
import { InputHistory } from "../../src/cli/chat/input-history.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { ExportedUser } from "../../src/fleet/groups/users.js";
import type { UserEntry } from "../../src/hosts/gather.js";
import type { PurgeReceipt } from "../../src/hosts/purge.js";
import { chatHistoryPath } from "../../src/runtime/files/shared-storage.js";
import { PURGE_STEPS } from "../../src/sessions/purge.js";
import { openStore } from "../../src/store/store.js";
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
    const { usage } = await fleet.usage.report({ since: "1h", by: "user" });
    expect(usage.map(({ key }) => key)).toContainEqual(expect.stringMatching(/^~/));
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
    const store = openStore("file", fleet.stateRoot);
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
    expect(found(fleet.stateRoot, [id])).not.toEqual([]);
    const store = openStore("file", fleet.stateRoot);
    // Since then, ann has used the id of another of these sessions again.
    const again = unused("used-again");
    await fleet.sessions.leave(await fleet.sessions.create({ user: "ann", sessionId: again }));
    await fleet.sessions.use(again, "one", { user: "ann" });
    const traces = () => {
      const names = found(fleet.stateRoot, [again]).map((path) => basename(path));
      return ["ledger.db", "events.db"].map((file) => names.filter((name) => name.startsWith(file)).length);
    };
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
    const store = openStore("file", fleet.stateRoot);
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

it("if gc cannot finish the purge of one user, it warns, finishes that of another, and retries next time", async () => {
  const [kept, erased] = [leaver(), leaver()];
  const store = openStore("file", fleet.stateRoot);
  for (const { user, canary } of [kept, erased]) {
    await talk(user, canary);
    await store.purges.begin({ user, begunAt: new Date().toISOString(), pending: [null] });
  }
  const chat = chatHistoryPath(fleet.stateRoot, kept.user);
  mkdirSync(chat, { recursive: true });
  const ran = await at.run(["gc"]);
  expect(ran).toMatchObject({ code: 0, stderr: expect.stringContaining("A purge could not be finished") });
  expect(found(fleet.stateRoot, erased.words)).toEqual([]);
  expect(await store.purges.list()).toMatchObject([{ user: kept.user }]);
  rmdirSync(chat);
  await at.ok(["gc"]);
  expect(await store.purges.list()).toEqual([]);
  expect(found(fleet.stateRoot, kept.words)).toEqual([]);
  await store.close();
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
    const unknown = { code: "FLEET_NAME_NOT_FOUND" };
    await expect(fleet.users.export("nobody", { output: `${folder}-2` })).rejects.toMatchObject(unknown);
  });
});

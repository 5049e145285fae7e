import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import type { NamedSource } from "../../src/base/server.js";
import { hashToken } from "../../src/base/token.js";
import { signRecords } from "../../src/fleet/migrate.js";
import { issueHostToken, issueToken, revokeTokens, verifyToken } from "../../src/identity/tokens.js";
import { Signer } from "../../src/store/redis/signatures.js";
import { openStore, type RecordSignatures, type Store } from "../../src/store/store.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { keyedTurn, serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const problem = redisProblem();
const OTHER_KEY = "ab".repeat(32);
const ENTRY = {
  door: "127.0.0.1:4300",
  state: "serving",
  startedAt: "2026-01-01T00:00:00.000Z",
  storage: null,
} as const;

describe.skipIf(problem !== undefined)("the signatures of records in Redis", () => {
  let redis: RedisServer;
  let fleets = 0;
  let fleet: string;
  let root: string;
  let store: Store;

  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(async () => await redis.end());
  beforeEach(async () => {
    fleet = `s${fleets++}`;
    root = await temporaryRoot();
    store = open();
  });

  function open(options: { root?: string; host?: string; key?: NamedSource } = {}): Store {
    const { root: at = root, host = "h1", key: source = null } = options;
    const secrets = { key: source, password: null, env: process.env };
    const opened = openStore(redis.url(fleet), at, { host, instance: () => `i-${host}`, secrets });
    onTestFinished(async () => await opened.close());
    return opened;
  }

  const key = (name: string) => `copilotfleet:{${fleet}}:${name}`;

  function signatures(): RecordSignatures {
    if (store.signatures === null) throw new Error("the store is not in Redis");
    return store.signatures;
  }

  async function forge(name: string, record: object): Promise<void> {
    await redis.client.set(key(name), `2 1-abc\n${JSON.stringify(record)}`);
  }

  /** Forges a token in Redis, as somebody can who may write to Redis but does not have the fleet's key. */
  async function forgedToken(extra: object): Promise<string> {
    const id = "attacker00000001";
    const token = `cft_${id}_${"A".repeat(43)}`;
    const createdAt = new Date().toISOString();
    await forge(`token:${id}`, { id, user: "alice", sha256: hashToken(token), createdAt, expiresAt: null, ...extra });
    await redis.client.zadd(key("token-ids"), 0, id);
    return token;
  }

  it("a user's or host's token that an attacker wrote to Redis is refused, and a warning names it", async () => {
    await issueToken(store, "alice", null);
    expect(await verifyToken(store, await forgedToken({}))).toBeNull();
    expect(store.takeWarnings().join("\n")).toMatch(/token:attacker00000001.* does not come from this fleet/);
    expect(await verifyToken(store, await forgedToken({ role: "host", user: "host:h2", door: "h1" }))).toBeNull();
    expect((await store.tokens.list()).map(({ user }) => user)).toEqual(["alice"]);
  });

  it("a registry or a host's address that an attacker changed in Redis is refused", async () => {
    await store.registry.update(({ servers }) => Object.assign(servers, { "a-1": serverRecord("a-1") }));
    await store.hosts?.beat("i-h1", ENTRY, 60_000);
    expect((await store.hosts?.list())?.map(({ door }) => door)).toEqual([ENTRY.door]);
    const entry = String(await redis.client.get(key("host:h1")));
    await redis.client.set(key("host:h1"), entry.replace(ENTRY.door, "192.0.2.1:1"));
    expect(await store.hosts?.list()).toEqual([]);
    expect(store.takeWarnings().join("\n")).toMatch(/host:h1.* does not come from this fleet/);
    const text = String(await redis.client.get(key("registry:h1")));
    await redis.client.set(key("registry:h1"), text.replace("127.0.0.1", "127.0.0.9"));
    await expect(store.registry.read()).rejects.toMatchObject({ code: "FLEET_STATE_UNSIGNED" });
    await expect(open({ host: "h2" }).hosts?.registryOf("h1")).rejects.toMatchObject({ code: "FLEET_STATE_UNSIGNED" });
  });

  it("a host counts as gone if an attacker restores its old entry in Redis; a changed entry is ignored", async () => {
    const before = { ...ENTRY, door: "192.0.2.1:1", until: Date.now() - 20_000 };
    await store.hosts?.beat("i-h1", before, 60_000);
    const earlier = String(await redis.client.get(key("host:h1")));
    await store.hosts?.beat("i-h1", ENTRY, 60_000);
    expect(await store.hosts?.list()).toMatchObject([{ door: ENTRY.door, gone: false }]);
    await redis.client.set(key("host:h1"), earlier);
    expect(await store.hosts?.list()).toMatchObject([{ door: before.door, gone: true, remainingMs: 0 }]);
    await redis.client.set(key("host:h1"), earlier.replaceAll(/"until":\d+/g, `"until":${Date.now() + 60_000}`));
    expect(await store.hosts?.list()).toEqual([]);
  });

  it("a forged token with a newer schema blocks neither the list nor the revocation of other tokens", async () => {
    const { id } = await issueToken(store, "alice", null);
    await redis.client.set(key("token:attacker00000001"), `99 1-abc\n{}`);
    await redis.client.zadd(key("token-ids"), 0, "attacker00000001");
    expect((await store.tokens.list()).map((token) => token.id)).toEqual([id]);
    expect(store.takeWarnings().join("\n")).toMatch(/token:attacker00000001.* does not come from this fleet/);
    const found = await signatures().find();
    expect(found).toEqual([{ kind: "tokens", name: "attacker00000001", verdict: "unsigned" }]);
    expect(await signatures().sign(found)).toEqual([]);
    expect(await revokeTokens(store, { user: "alice" })).toEqual([id]);
    expect(await store.tokens.delete("attacker00000001")).toBe(true);
  });

  it("a signed record of a newer version is refused as newer, and is neither changed nor deleted", async () => {
    await issueToken(store, "alice", null);
    const content = "99 1-abc\n{}";
    const text = content.replace("\n", ` ${new Signer(root, null, "").sign(key("token:newer"), content)}\n`);
    await redis.client.set(key("token:newer"), text);
    const newer = { code: "FLEET_PROTOCOL_UNSUPPORTED" };
    await expect(store.tokens.read("newer")).rejects.toMatchObject(newer);
    await expect(store.tokens.delete("newer")).rejects.toMatchObject(newer);
    expect(await redis.client.get(key("token:newer"))).toBe(text);
  });

  it("a signed record that was copied to another name in Redis is refused", async () => {
    const { id, token } = await issueToken(store, "alice", null);
    const moved = `cft_attacker00000001_${token.slice(-43)}`;
    const text = String(await redis.client.get(key(`token:${id}`)));
    await redis.client.set(key("token:attacker00000001"), text);
    expect(await verifyToken(store, moved)).toBeNull();
    await store.hosts?.beat("i-h1", ENTRY, 60_000);
    await redis.client.copy(key("host:h1"), key("host:h2"));
    await redis.client.zadd(key("host-ids"), 0, "h2");
    expect((await store.hosts?.list())?.map(({ name }) => name)).toEqual(["h1"]);
  });

  describe("an older record of a session that somebody puts back", () => {
    const unsigned = { code: "FLEET_STATE_UNSIGNED" };
    const LATER = "2026-01-02T00:00:00.000Z";
    const record = () => redis.client.get(key("session:s"));
    let other: Store;

    /**
     * Creates a session of alice with the member bob. @returns functions that remove bob, and that put back the record
     */
    async function withBob(): Promise<{ removeBob(): Promise<void>; putBack(): Promise<void> }> {
      other = open({ host: "h2" });
      await store.sessions.create(sessionRecord("s", { kind: "collaborative", members: ["bob"] }));
      const before = String(await record());
      return {
        removeBob: async () => await store.sessions.update("s", (draft) => void draft.members.pop()),
        putBack: async () => void (await redis.client.set(key("session:s"), before)),
      };
    }

    it("is refused by processes that removed the member or read the newer record, and nothing changes it", async () => {
      const { removeBob, putBack } = await withBob();
      await removeBob();
      expect((await other.sessions.list()).map(({ members }) => members)).toEqual([[]]);
      await putBack();
      const old = await record();
      for (const { sessions } of [store, other]) {
        await expect(sessions.read("s")).rejects.toMatchObject(unsigned);
        await expect(sessions.update("s", (draft) => void draft.turns++)).rejects.toMatchObject(unsigned);
        await expect(sessions.list()).rejects.toMatchObject(unsigned);
        const unreadable: string[] = [];
        expect(await sessions.list((id) => void unreadable.push(id))).toEqual([]);
        expect(unreadable).toEqual(["s"]);
      }
      expect(await record()).toBe(old);
      expect((await open({ host: "h3" }).sessions.read("s"))?.members).toEqual(["bob"]);
      expect(await store.sessions.delete("s")).toBe(true);
    });

    it("is accepted if only other fields differ, and a later record then still counts as older", async () => {
      const { removeBob, putBack } = await withBob();
      await store.sessions.update("s", (draft) => void draft.turns++);
      await putBack();
      expect(await store.sessions.read("s")).toMatchObject({ members: ["bob"], turns: 0 });
      await removeBob();
      await store.sessions.update("s", (draft) => void draft.turns++);
      const removed = String(await record());
      await putBack();
      await expect(store.sessions.read("s")).rejects.toMatchObject(unsigned);
      await redis.client.set(key("session:s"), removed);
      expect(await store.sessions.read("s")).toMatchObject({ members: [], turns: 1 });
    });

    it("is refused even after this process has changed a record that Redis had set back", async () => {
      const { removeBob, putBack } = await withBob();
      const lost: string[] = [];
      for (const _ of [1, 2]) {
        await store.sessions.update("s", (draft) => void draft.turns++);
        lost.push(String(await record()));
      }
      await putBack();
      await removeBob();
      expect(await store.sessions.read("s")).toMatchObject({ members: [] });
      await putBack();
      await expect(store.sessions.read("s")).rejects.toMatchObject(unsigned);
      for (const text of lost) {
        await redis.client.set(key("session:s"), text);
        await expect(store.sessions.read("s")).rejects.toMatchObject(unsigned);
      }
    });

    it("is refused if it belongs to the former owner of a deleted session, whose id another user has taken", async () => {
      const { putBack } = await withBob();
      for (const _ of [1, 2]) await store.sessions.update("s", (draft) => void draft.turns++);
      const latest = String(await record());
      await other.sessions.read("s");
      expect(await store.sessions.delete("s")).toBe(true);
      await store.sessions.create(sessionRecord("s", { owner: "carol", createdAt: LATER }));
      for (const { sessions } of [store, other]) expect(await sessions.read("s")).toMatchObject({ owner: "carol" });
      for (const { sessions } of [store, other]) {
        await redis.client.set(key("session:s"), latest);
        await expect(sessions.read("s")).rejects.toMatchObject(unsigned);
        await putBack();
        await expect(sessions.read("s")).rejects.toMatchObject(unsigned);
      }
    });

    it("does not stop a process from creating the session again, even if the process's clock was set back", async () => {
      await withBob();
      await store.sessions.delete("s");
      const again = sessionRecord("s", { owner: "carol", createdAt: "2025-01-01T00:00:00.000Z" });
      await store.sessions.create(again);
      expect(await store.sessions.read("s")).toMatchObject({ owner: "carol" });
    });
  });

  it("a host without the fleet's key is refused until it uses a copy of the key", async () => {
    await issueToken(store, "alice", null);
    const second = await temporaryRoot();
    const refused = open({ root: second, host: "h2" });
    await expect(refused.tokens.list()).rejects.toMatchObject({ code: "FLEET_STORE_UNUSABLE" });
    expect(existsSync(join(second, "store-key"))).toBe(false);
    expect(
      await open({
        root: second,
        host: "h2",
        key: { from: "command", command: `cat ${join(root, "store-key")}` },
      }).tokens.list(),
    ).toHaveLength(1);
  });

  it("signed records stay valid while a new key replaces the old one, and sign() makes the old key unnecessary", async () => {
    const { token } = await issueToken(store, "alice", null);
    const { token: ofHost } = await issueHostToken(store, "h2", "h1");
    const purge = { user: "zoe", begunAt: "2026-01-01T00:00:00.000Z", pending: ["h1"] };
    await store.purges.begin(purge);
    expect(await store.pseudonymKey(OTHER_KEY)).toBe(OTHER_KEY);
    const file = join(root, "store-key");
    const old = readFileSync(file, "utf8");
    const other = open({ host: "h2" });
    expect(await verifyToken(other, token)).toMatchObject({ user: "alice" });
    for (const content of [`${old}${OTHER_KEY}\n`, `${OTHER_KEY}\n${old}`]) {
      writeFileSync(file, content);
      await expect.poll(async () => await verifyToken(other, token)).toMatchObject({ user: "alice" });
    }
    const kinds = ["tokens outdated", "purges outdated", "pseudonym-key outdated"];
    await expect
      .poll(async () => (await signatures().find()).map(({ kind, verdict }) => `${kind} ${verdict}`))
      .toEqual(kinds);
    expect(await verifyToken(other, ofHost)).toMatchObject({ host: "h2" });
    expect(await signatures().sign(await signatures().find())).toHaveLength(3);
    writeFileSync(file, `${OTHER_KEY}\n`);
    const fresh = open();
    expect(await verifyToken(fresh, token)).toMatchObject({ user: "alice" });
    expect(await fresh.purges.list()).toEqual([purge]);
    expect(await fresh.pseudonymKey("cd".repeat(32))).toBe(OTHER_KEY);
    expect(await fresh.signatures?.find()).toEqual([]);
  });

  it("store sign signs records without a signature only with --all, and no token of a host", async () => {
    await store.registry.update(({ servers }) => Object.assign(servers, { "a-1": serverRecord("a-1") }));
    const { id, token } = await issueToken(store, "alice", null);
    await store.hosts?.beat("i-h1", ENTRY, 60_000);
    await store.keyedTurns.create(keyedTurn("alice", "k"));
    await store.limits.set("alice", () => ({ limits: { sessions: 5 } }));
    const [ofKey = ""] = await redis.client.zrange(key("keyed-turn-ids"), "0", "-1");
    for (const name of ["registry:h1", "host:h1", `token:${id}`, `keyed-turn:${ofKey}`, "limits:alice"]) {
      const text = String(await redis.client.get(key(name)));
      await redis.client.set(key(name), text.replace(/ \S+\n/, "\n"));
    }
    const ofHost = await forgedToken({ role: "host", user: "host:h2", door: "h1" });
    expect(await verifyToken(store, token)).toBeNull();
    const env = {
      PATH: process.env.PATH,
      COPILOTFLEET_HOME: root,
      COPILOTFLEET_STORE: redis.url(fleet),
      COPILOTFLEET_HOST_NAME: "h1",
    };
    const sign = async (all: boolean) => await signRecords({ env, cwd: tmpdir(), all, confirm: async () => undefined });
    const left = await sign(false);
    expect([left.signed.length, left.refused.length]).toEqual([0, 5]);
    const { signed, refused } = await sign(true);
    expect(signed.map(({ kind, name }) => `${kind} ${name}`).sort()).toEqual([
      "hosts h1",
      `keyed-turns ${ofKey}`,
      "limits alice",
      "servers h1",
      `tokens ${id}`,
    ]);
    expect(refused).toEqual([]);
    expect(await verifyToken(store, token)).toMatchObject({ user: "alice" });
    expect(await verifyToken(store, ofHost)).toBeNull();
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["a-1"]);
    expect(await store.keyedTurns.read("alice", "k")).toMatchObject({ key: "k" });
    expect(await store.limits.read("alice")).toMatchObject({ limits: { sessions: 5 } });
    expect(await sign(true)).toEqual({ signed: [], refused: [] });
  });

  it("store sign does not sign a record that somebody replaced after store sign had listed it", async () => {
    const { id } = await issueToken(store, "alice", null);
    const file = join(root, "store-key");
    writeFileSync(file, `${OTHER_KEY}\n${readFileSync(file, "utf8")}`);
    await expect.poll(async () => await signatures().find()).toMatchObject([{ name: id, verdict: "outdated" }]);
    const found = await signatures().find();
    const token = `cft_${id}_${"A".repeat(43)}`;
    const createdAt = new Date().toISOString();
    const forged = { id, user: "root", sha256: hashToken(token), createdAt, expiresAt: null };
    await forge(`token:${id}`, forged);
    expect(await signatures().sign(found)).toEqual([]);
    expect(await verifyToken(store, token)).toBeNull();
  });

  it("store sign fails on a host without the fleet's key, and replaces no signature", async () => {
    await issueToken(store, "alice", null);
    const env = { COPILOTFLEET_HOME: await temporaryRoot(), COPILOTFLEET_STORE: redis.url(fleet) };
    const signing = signRecords({ env, cwd: tmpdir(), all: false, confirm: async () => undefined });
    await expect(signing).rejects.toMatchObject({ code: "FLEET_STORE_UNUSABLE" });
    expect(await store.tokens.list()).toHaveLength(1);
  });
});

import { generateKeyPairSync } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { HostDirectory } from "../../src/hosts/directory.js";
import { certify, doorText, HostKeys, type SignedCall } from "../../src/hosts/keys/host-keys.js";
import { ensureHostKey } from "../../src/hosts/keys/key-file.js";
import { issueHostToken } from "../../src/identity/tokens.js";
import type { Store } from "../../src/store/ports.js";
import type { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { RawClient } from "../gateway/raw-client.js";
import { HostDoors } from "./door-harness.js";

const problem = redisProblem();
const CALL = { method: "servers", params: {} };

/** The attacker is like one compromised host: it has the fleet's key for records, but no other host's key. */
describe.skipIf(problem !== undefined)("with host keys that the fleet's CA has signed,", () => {
  let redis: RedisServer;
  let at: HostDoors;
  let h1: HostKeys;
  let stranger: HostKeys;

  beforeAll(async () => {
    redis = await RedisServer.start();
    at = await HostDoors.open({ redis, storage: "local", prepare });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await redis.end();
  });

  function prepare(hosts: TestHosts): void {
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const folder = hosts.host("h1").folder;
    const [ca, pub] = [join(folder, "ca.pem"), join(folder, "ca.pub")];
    writeFileSync(ca, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
    writeFileSync(pub, publicKey.export({ type: "spki", format: "pem" }));
    for (const name of ["h1", "h2"]) {
      const { root, env } = hosts.host(name);
      env.COPILOTFLEET_HOST_CA = pub;
      writeFileSync(join(root, "host-certificate"), certify(ca, name, keyOf(root)));
    }
    const host = { host: { ca: pub, peers: [] } } as never;
    h1 = HostKeys.from(host, hosts.host("h1").root) as HostKeys;
    stranger = HostKeys.from(host, join(folder, "stranger")) as HostKeys;
  }

  const keyOf = (root: string) => ensureHostKey(root).x;

  async function asHost(from: string): Promise<RawClient> {
    return await RawClient.as(at.url("h2"), (await issueHostToken(at.store, from, "h2")).token);
  }

  /** The call that h1 signs for this connection to h2, changed by `change`. */
  const callOn = (raw: RawClient, change: Partial<SignedCall> = {}): SignedCall => {
    const greeting = raw.received.find(({ result }) => result !== undefined)?.result as { challenge: string };
    return { challenge: greeting.challenge, from: "h1", to: "h2", ...CALL, ...change };
  };

  it("a host accepts a signed call only once, and only unchanged on the connection for which the caller signed it", async () => {
    expect(await at.hosts.host("h1").json(["ps"])).toMatchObject({ servers: [] });
    const raw = await asHost("h1");
    const ask = async (proof: unknown, params = CALL) =>
      await raw.request("fleet.call", { ...params, limitMs: 5_000, proof });
    const call = (change: Partial<SignedCall> = {}) => callOn(raw, change);
    const good = h1.signCall(call());
    expect(await ask(good)).toMatchObject({ result: [] });
    const refused = { error: { data: { code: "FLEET_TOKEN_REFUSED" } } };
    for (const proof of [
      undefined,
      good, // a repetition
      stranger.signCall(call()),
      h1.signCall(call({ to: "h1" })),
      h1.signCall(call({ method: "gc" })),
      h1.signCall(call({ params: { id: "x" } })),
      h1.signCall(call({ challenge: "" })),
      h1.signCall(callOn(await asHost("h1"))), // signed for another connection
      { ...h1.signCall(call()), at: Date.now() - 31_000 },
    ])
      expect(await ask(proof)).toMatchObject(refused);
    const h3 = await asHost("h3");
    const proof = h1.signCall(callOn(h3));
    expect(await h3.request("fleet.call", { ...CALL, limitMs: 5_000, proof })).toMatchObject(refused);
  });

  it("a host refuses calls signed before its restart, even though its list of accepted calls is lost", async () => {
    const raw = await asHost("h1");
    const call = { ...CALL, limitMs: 5_000, proof: h1.signCall(callOn(raw)) };
    expect(await raw.request("fleet.call", call)).toMatchObject({ result: [] });
    await at.hosts.host("h2").stopServing("SIGTERM");
    await at.serve();
    const again = await asHost("h1");
    expect(await again.request("fleet.call", call)).toMatchObject({ error: { data: { code: "FLEET_TOKEN_REFUSED" } } });
    const fresh = { ...call, proof: h1.signCall(callOn(again)) };
    expect(await again.request("fleet.call", fresh)).toMatchObject({ result: [] });
  });

  it("a host ignores the address of another host's front door unless that host has signed the address", async () => {
    const [record] = (await at.store.hosts.list()).filter(({ name }) => name === "h2");
    if (record === undefined) throw new Error("there is no h2");
    const { door, instance, until, proof } = record;
    expect(h1.isSignedBy("h2", doorText("h2", instance, door, until), proof)).toBe(true);
    for (const text of [doorText("h2", instance, "127.0.0.1:9", until), doorText("h1", instance, door, until)])
      expect(h1.isSignedBy("h2", text, proof)).toBe(false);
    expect(h1.isSignedBy("h1", doorText("h2", instance, door, until), proof)).toBe(false);
    const changed = [{ ...record, door: "127.0.0.1:9" }, { ...record, until: (until ?? 0) + 60_000 }, record];
    const hosts = { own: "h1", list: async () => await Promise.resolve(changed) };
    const store = { hosts } as unknown as Store;
    const directory = new HostDirectory({ store, config: { storage: { shared: null } }, keys: h1 });
    expect((await directory.list()).map((host) => host.door)).toEqual([null, null, door]);
  });
});

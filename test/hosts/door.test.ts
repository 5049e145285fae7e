import { approveAll } from "@github/copilot-sdk";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { rendezvousChoice } from "../../src/servers/placement.js";
import { RawClient, type RawMessage } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "./door-harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`front doors of several hosts are not tested: ${problem}`);

const SOAK = process.env.SOAK !== undefined;

/** How many tests have started, including retries of a failed test. */
let tries = 0;
/** A name for a user or session that no earlier test and no earlier attempt of this test has used. */
const fresh = (name: string) => `${name}-${tries}`;
/** A user whom rendezvous hashing assigns to `host` when only these hosts are alive. */
function freshUser(host: string, ...others: string[]): string {
  for (let index = 0; ; index++) {
    const user = fresh(`user-${index}`);
    if (rendezvousChoice(user, [host, ...others].toSorted()) === host) return user;
  }
}

const idles = (client: RawClient, id: string) => client.events(id).filter((type) => type === "session.idle").length;

/** Repeats a request until it succeeds, because the other hosts notice only after a while that a host has died. */
async function insist(what: string, ask: () => Promise<RawMessage>): Promise<RawMessage> {
  const refusals = new Set<string>();
  const answer = await eventually(
    `an answer to ${what}`,
    async () => {
      const { error, ...rest } = await ask();
      if (error === undefined) return rest;
      refusals.add(error.data?.code ?? error.message);
      return undefined;
    },
    45_000,
  );
  // Until the request succeeds, the client may get only errors that are worth a retry.
  for (const code of refusals) expect(["FLEET_HOST_AWAY", "FLEET_SESSION_MOVED", "FLEET_SERVER_LOST"]).toContain(code);
  return answer;
}

describe.skipIf(problem !== undefined)("the front door of one of several hosts", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());
  beforeEach(() => {
    tries++;
  });

  describe.each([{ storage: "local" }, { storage: "shared" }] as const)("with $storage storage", ({ storage }) => {
    /** For a test that does not depend on the storage. It runs with local storage only, and in the soak with both. */
    const anyStorage = it.skipIf(storage === "shared" && !SOAK);
    let at: HostDoors;
    beforeAll(async () => {
      // Only the tests of shared storage need a third host.
      const names = storage === "shared" ? ["h1", "h2", "h3"] : ["h1", "h2"];
      at = await HostDoors.open({ redis, storage, names, env: { COPILOTFLEET_SERVE_TURN_WAIT: "3s" } });
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });
    // An earlier test may have killed a host.
    beforeEach(() => at.serve());

    it("relays a client to the host where its user is placed, if the client connects to another host", async () => {
      const annsSession = fresh("ann-1");
      await at.place(fresh("ann"), "h2");
      const ann = await at.raw(fresh("ann"), "h1");
      await ann.requestOk("session.create", { sessionId: annsSession });
      expect(await ann.turn(annsSession, "one")).toMatchObject({ result: {} });
      expect(JSON.stringify(ann.received)).toContain("you said: one");
      expect(await at.session(annsSession)).toMatchObject({ owner: fresh("ann"), host: "h2" });
      const here = Object.values((await at.store.hosts.registryOf("h1")).servers).map(({ user }) => user);
      expect(here).not.toContain(fresh("ann"));
      await eventually("the turn is recorded", async () => (await at.session(annsSession)).turns === 1);
      const listed = await ann.request("session.list");
      expect(listed).toMatchObject({ result: { sessions: [expect.objectContaining({ sessionId: annsSession })] } });
      expect(await ann.request("sessions.getSizes")).toMatchObject({ result: {} });
    });

    anyStorage("relays another host's refusals to the client unchanged", async () => {
      const [annsSession, evesSession] = [fresh("ann-1"), fresh("eve-1")];
      await at.place(fresh("ann"), "h2");
      const ann = await at.raw(fresh("ann"), "h2");
      expect(await ann.request("session.create", { sessionId: annsSession })).toMatchObject({ result: {} });
      await at.place(fresh("eve"), "h2");
      const eve = await at.raw(fresh("eve"), "h1");
      await eve.requestOk("session.create", { sessionId: evesSession });
      expect(await eve.request("session.create", { sessionId: evesSession })).toMatchObject({
        error: { code: -32003, data: { code: "FLEET_SESSION_EXISTS" } },
      });
      expect(await eve.request("session.options.update", { sessionId: evesSession, provider: {} })).toMatchObject({
        error: { code: -32003, data: { code: "FLEET_METHOD_DENIED" } },
      });
      expect((await eve.request("session.delete", { sessionId: annsSession })).result).toMatchObject({
        success: false,
      });
      for (const method of ["session.resume", "session.send", "sessions.delete", "session.getMessages"]) {
        expect(await eve.request(method, { sessionId: annsSession, prompt: "x" }), method).toMatchObject({
          error: { data: { code: "FLEET_SESSION_NOT_FOUND" } },
        });
      }
      expect(await eve.request("runtime.shutdown")).toMatchObject({ error: { data: { code: "FLEET_METHOD_DENIED" } } });
    });

    it("relays a member to a collaborative session on another host, and takes the lease for each turn", async () => {
      const team = fresh("team");
      await at.place(fresh("ola"), "h2");
      await at.place(fresh("mia"), "h1");
      const library = await at.hosts.host("h2").library();
      const made = await library.sessions.create({ user: fresh("ola"), members: [fresh("mia")], sessionId: team });
      await library.sessions.leave(made);
      await library.close();
      const [ola, mia] = [await at.raw(fresh("ola"), "h2"), await at.raw(fresh("mia"), "h1")];
      for (const client of [ola, mia]) {
        expect(await client.request("session.resume", { sessionId: team })).toMatchObject({ result: {} });
      }
      await mia.requestOk("session.send", { sessionId: team, prompt: "!delay 60000 mine" });
      expect(await at.store.leases.read(team)).toMatchObject({ holder: fresh("mia") });
      expect(await ola.request("session.send", { sessionId: team, prompt: "too early" })).toMatchObject({
        error: { data: { code: "FLEET_SESSION_LOCKED" } },
      });
      expect(await mia.request("session.abort", { sessionId: team })).toMatchObject({ result: {} });
      await eventually("the lease is given back", async () => (await at.store.leases.read(team)) === null);
      await ola.turnOk(team, "from ola");
      await eventually("the reply at mia's", () => JSON.stringify(mia.received).includes("you said: from ola"));
      // mia may use only the conversation, and has no server on ola's host.
      expect(await mia.request("session.shell.exec", { sessionId: team, command: "id" })).toMatchObject({
        error: { data: { code: "FLEET_METHOD_DENIED" } },
      });
      const there = Object.values((await at.store.hosts.registryOf("h2")).servers).map(({ user }) => user);
      expect(there).not.toContain(fresh("mia"));
      expect(await mia.request("session.detach", { sessionId: team })).toMatchObject({ result: {} });
    });

    anyStorage("keeps relaying other users to another host after one user's token was revoked", async () => {
      const [kimsSession, leesSession] = [fresh("kim-1"), fresh("lee-1")];
      await at.place(fresh("kim"), "h2");
      const first = await at.raw(fresh("kim"), "h2");
      expect(await first.request("session.create", { sessionId: kimsSession })).toMatchObject({ result: {} });
      await at.place(fresh("kim"), "h1");
      const [many, answers] = await eventually("answers before the front door has noticed by itself", async () => {
        const token = await at.token(fresh("kim"));
        const clients = await Promise.all(
          Array.from({ length: 15 }, async () => await RawClient.as(at.url("h1"), token)),
        );
        await at.store.tokens.delete(token.split("_")[1] ?? "");
        // Each client asks for a session on the other host.
        const asked = clients.map(
          async (client) => await client.request("session.getMessages", { sessionId: kimsSession }),
        );
        const outcomes = await Promise.allSettled(asked);
        const got = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
        return got.length === clients.length && ([clients, got] as const);
      });
      await at.place(fresh("lee"), "h2");
      const lee = await at.raw(fresh("lee"), "h1");
      expect(await lee.request("session.create", { sessionId: leesSession })).toMatchObject({ result: {} });
      await at.hosts.host("h1").ok(["ps"]);
      for (const answer of answers) {
        expect(answer).toMatchObject({ error: { code: -32003, data: { code: "FLEET_TOKEN_REFUSED" } } });
      }
      await eventually("the end of those connections", () => many.every(({ closed }) => closed));
    });

    anyStorage("refuses to relay a client that another host has already relayed", async () => {
      const unasSession = fresh("una-1");
      await at.place(fresh("una"), "h2");
      const token = await at.token(fresh("una"));
      const una = await RawClient.as(at.url("h1"), token);
      await una.requestOk("session.create", { sessionId: unasSession });
      const carried = await RawClient.open(at.url("h1"));
      const hello = { token, supportedTaskKinds: [], fleet: { via: "h2", hops: 1 } };
      expect(await carried.request("connect", hello)).toMatchObject({ result: { protocolVersion: 3 } });
      for (const [method, params] of [
        ["session.resume", { sessionId: unasSession }],
        ["session.send", { sessionId: unasSession, prompt: "x" }],
        ["session.create", {}],
        ["session.list", {}],
        ["ping", {}],
      ] as const) {
        expect(await carried.request(method, params), method).toMatchObject({
          error: { code: -32003, data: { code: "FLEET_SESSION_MOVED", retryable: true } },
        });
      }
      // Any value of `fleet` marks the client as relayed.
      for (const fleet of [null, 1, "x", {}, { via: "../h2" }, { via: 'h2"\n', hops: -1 }]) {
        const odd = await RawClient.open(at.url("h1"));
        await odd.request("connect", { ...hello, fleet });
        expect(await odd.request("ping"), JSON.stringify(fleet)).toMatchObject({
          error: { data: { code: "FLEET_SESSION_MOVED" } },
        });
      }
    });

    anyStorage(
      "ends relayed connections when their token is revoked, and writes no token to logs or Redis",
      async () => {
        const raesSession = fresh("rae-1");
        await at.place(fresh("rae"), "h2");
        const rae = await at.raw(fresh("rae"), "h1");
        await rae.requestOk("session.create", { sessionId: raesSession });
        const token = at.tokens.at(-1) ?? "";
        await at.store.tokens.delete(token.split("_")[1] ?? "");
        await rae.end();
        const text = ["h1", "h2"].map((name) => at.hosts.host(name).output).join("");
        expect(text).toContain(fresh("rae"));
        expect(at.tokens.filter((given) => text.includes(given.slice(-20)))).toEqual([]);
        const keys = await redis.client.keys("*");
        expect(keys.length).toBeGreaterThan(5);
        for (const key of keys) {
          const dump = (await redis.client.dumpBuffer(key))?.toString("latin1") ?? "";
          expect(at.tokens.filter((given) => dump.includes(given.slice(-20)))).toEqual([]);
        }
      },
    );

    if (storage === "local") {
      it("refuses sessions on a dead host's own disk as stranded, and continues them when that host is back", async () => {
        const [notes, young] = [fresh("notes"), fresh("new")];
        await at.place(fresh("ann"), "h2");
        const client = await at.raw(fresh("ann"), "h1");
        await client.requestOk("session.create", { sessionId: notes });
        await client.turnOk(notes, "one");
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        await at.hosts.lose("h2");
        const stranded = { error: { data: { code: "FLEET_HOST_AWAY" } } };
        await eventually("the refusal", async () => {
          const { error } = await client.request("session.name.get", { sessionId: notes });
          return error?.data?.code === "FLEET_HOST_AWAY";
        });
        expect(await client.request("session.send", { sessionId: notes, prompt: "x" })).toMatchObject(stranded);
        expect(await client.request("session.create", { sessionId: young })).toMatchObject({ result: {} });
        expect(await at.session(young)).toMatchObject({ host: "h1" });
        expect(await client.turn(young, "hi")).toMatchObject({ result: {} });
        // The list also has the session on the other host, because the store has its record.
        const listed = (await client.request("session.list")).result as { sessions: { sessionId: string }[] };
        expect(listed.sessions.map(({ sessionId }) => sessionId).toSorted()).toEqual([young, notes]);

        await at.serve();
        expect(await client.turn(notes, "two")).toMatchObject({ result: {} });
        expect(await client.turn(young, "again")).toMatchObject({ result: {} });
        expect(await at.session(notes)).toMatchObject({ host: "h2" });
        expect(await at.session(young)).toMatchObject({ host: "h1" });
      });
      return;
    }
    describe("when a host ends,", () => {
      it("ends a dead host's turns at once, and reopens its clients' sessions on the host that takes over", async () => {
        const [notes, busy] = [fresh("notes"), fresh("busy")];
        const ann = freshUser("h1", "h3");
        await at.place(ann, "h2");
        const client = await at.client(ann, "h1");
        const session = await client.createSession({
          sessionId: notes,
          onPermissionRequest: approveAll,
          tools: [
            { name: "mine", description: "x", parameters: { type: "object" }, handler: async () => "the client's" },
          ],
        });
        await session.sendAndWait("one");
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        const raw = await at.raw(ann, "h1");
        await raw.requestOk("session.create", { sessionId: busy });
        await raw.requestOk("session.send", { sessionId: busy, prompt: "!delay 60000 never" });
        await eventually("the turn", () => raw.events(busy).includes("user.message"));
        const waiting = raw.request("session.tasks.waitForPending", { sessionId: busy });
        await raw.requestOk("ping");
        await at.hosts.host("h2").die();
        expect(await waiting).toMatchObject({ error: { data: { code: "FLEET_SERVER_LOST", retryable: true } } });
        await eventually("the end of the turn", () => raw.events(busy).includes("session.idle"));
        expect(raw.events(busy).slice(-2)).toEqual(["session.error", "session.idle"]);
        expect(raw.closed).toBe(false);
        await at.hosts.expire("h2");

        await insist("another client", async () => await raw.request("session.resume", { sessionId: notes }));
        await insist("a prompt", async () => await raw.turn(notes, "x"));
        await eventually("its end", async () => (await at.session(notes)).turns === 2);
        expect(await at.session(notes)).toMatchObject({ host: "h1" });
        // The SDK client gets the events of the session again without sending a request.
        const heard: string[] = [];
        session.on((event) => void heard.push(event.type === "assistant.message" ? event.data.content : event.type));
        await eventually("the way back of who only listens", async () => {
          await raw.turnOk(notes, "y");
          return heard.includes("you said: y");
        });
        // `sendAndWait` treats the next `session.idle` as the end of its turn. So wait until the previous turn ends.
        await eventually("the end of that turn", () =>
          heard.slice(heard.lastIndexOf("you said: y")).includes("session.idle"),
        );
        const reply = await session.sendAndWait("!tool mine {}");
        expect(reply?.data.content).toBe("tool said: the client's");
        const said = (await session.getEvents()).flatMap((event) =>
          event.type === "user.message" ? [event.data.content] : [],
        );
        expect(said.filter((prompt) => prompt !== "y")).toEqual(["one", "x", "!tool mine {}"]);
      });

      it("takes a session over from a host that hangs, and keeps the session when that host works again", async () => {
        const notes = fresh("notes");
        const ann = freshUser("h1", "h3");
        await at.place(ann, "h2");
        const [far, near] = [await at.raw(ann, "h1"), await at.raw(ann, "h2")];
        await far.requestOk("session.create", { sessionId: notes });
        await far.turnOk(notes, "one");
        await near.requestOk("session.resume", { sessionId: notes });
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        await far.requestOk("session.send", { sessionId: notes, prompt: "!delay 60000 never" });
        // A client gets the end of a turn only if it has seen the turn begin.
        await eventually("the turn at both", () =>
          [near, far].every(({ received }) => JSON.stringify(received).includes("!delay 60000 never")),
        );
        const frozen = at.hosts.host("h2").suspend();
        try {
          await at.hosts.gone("h2");
          await eventually("the end of the turn", () => far.events(notes).includes("session.error"));
          await insist("a prompt", async () => await far.request("session.send", { sessionId: notes, prompt: "two" }));
          await eventually("the reply", () => JSON.stringify(far.received).includes("you said: two"));
          expect(await at.session(notes)).toMatchObject({ host: "h1" });
        } finally {
          frozen.resume();
        }
        // The client at h2's own front door also gets the end of the turn, and is relayed to the session's new host.
        await eventually("the end of the turn there", () => near.events(notes).includes("session.error"));
        await insist("a prompt", async () => await near.request("session.send", { sessionId: notes, prompt: "three" }));
        await eventually("the reply at both", () =>
          [near, far].every(({ received }) => JSON.stringify(received).includes("you said: three")),
        );
        const { result } = await far.request("session.getMessages", { sessionId: notes });
        const said = JSON.stringify(result).match(/"content":"(one|two|three|!delay 60000 never)"/g);
        expect(said?.filter((content) => content.includes("two"))).toHaveLength(1);
        expect([far.closed, near.closed]).toEqual([false, false]);
        await at.hosts.back("h2");
      });

      it("moves a dead host's session to a third host if its user is now placed on that host", async () => {
        const notes = fresh("notes");
        const ann = freshUser("h3", "h1");
        await at.place(ann, "h2");
        const client = await at.raw(ann, "h1");
        await client.requestOk("session.create", { sessionId: notes });
        await client.turnOk(notes, "one");
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        await at.hosts.host("h2").die();
        await at.hosts.expire("h2");
        await insist("a prompt", async () => await client.request("session.send", { sessionId: notes, prompt: "two" }));
        await eventually("the reply", () => JSON.stringify(client.received).includes("you said: two"));
        expect(await at.session(notes)).toMatchObject({ host: "h3" });
      });
    });

    describe("when a session moves,", () => {
      it("relays a client to its session's new host after a move, without an error", async () => {
        const notes = fresh("notes");
        await at.place(fresh("ann"), "h1");
        const client = await at.raw(fresh("ann"), "h1");
        await client.requestOk("session.create", { sessionId: notes });
        await client.turnOk(notes, "one");
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        await client.requestOk("sessions.close", { sessionId: notes });
        await at.place(fresh("ann"), "h2");
        await at.endTerm(notes);
        const before = client.events(notes).length;
        expect(await client.turn(notes, "two")).toMatchObject({ result: {} });
        expect(await at.session(notes)).toMatchObject({ host: "h2" });
        expect(client.events(notes).slice(before)).not.toContain("session.error");
        expect((await client.request("session.getMessages", { sessionId: notes })).error).toBeUndefined();
      });

      it("ends turns when their host's term has expired, and reopens the sessions under the new term", async () => {
        const notes = fresh("notes");
        await at.place(fresh("ann"), "h1");
        const token = await at.token(fresh("ann"));
        const [client, listener] = [await RawClient.as(at.url("h1"), token), await RawClient.as(at.url("h1"), token)];
        await client.requestOk("session.create", { sessionId: notes });
        await client.turnOk(notes, "one");
        await eventually("the turn is recorded", async () => (await at.session(notes)).turns === 1);
        await listener.requestOk("session.resume", { sessionId: notes });
        await client.requestOk("session.send", { sessionId: notes, prompt: "!delay 60000 never" });
        const before = await at.session(notes);
        // This is the effect of a late heartbeat: the host gets a new term.
        await at.hosts.expire("h1");
        await eventually("the cut", () => idles(client, notes) === 2);
        expect(client.events(notes).slice(-2)).toEqual(["session.error", "session.idle"]);
        // The front door opens the session again for the listener, which sends no request.
        const resumed = () => listener.events(notes).filter((type) => type === "session.resume").length;
        await eventually("the listener's way back", () => resumed() >= 2);
        // The front door trusts its last read of the hosts for up to SEEN_MS. Until then, turns may still run under the
        // old term.
        const isTaken = async () => (await at.session(notes)).term !== before.term;
        for (let turns = 0; !(await isTaken()); turns++) {
          await insist("a prompt", async () => await client.turn(notes, `round ${turns}`));
        }
        await client.turnOk(notes, "two");
        await eventually("the reply at who only listens", () =>
          JSON.stringify(listener.received).includes("you said: two"),
        );
        const after = await at.session(notes);
        expect(after.host).toBe("h1");
        expect(after.term).toBeGreaterThan(before.term ?? 0);
        expect([client.closed, listener.closed]).toEqual([false, false]);
        await at.hosts.back("h1");
      });
    });
  });

  it("ends the turn of a relayed prompt if the other host dies before it begins the accepted prompt", async () => {
    const notes = fresh("notes");
    const env = { COPILOTFLEET_RUNTIME_PATH: fake("obedient.mjs") };
    await using at = await HostDoors.open({ redis, storage: "local", names: ["h1", "h2"], env });
    await at.place(fresh("ann"), "h2");
    const client = await at.raw(fresh("ann"), "h1");
    await client.requestOk("session.create", { sessionId: notes });
    // The fake server accepts this prompt, reports that it is busy, and does not begin the turn.
    const { result } = await client.request("session.send", { sessionId: notes, prompt: "behind" });
    expect(result).toMatchObject({ messageId: expect.any(String) });
    expect(client.events(notes)).toEqual([]);
    await at.hosts.lose("h2");
    await eventually("the end of the turn", () => client.events(notes).includes("session.idle"));
    expect(client.events(notes)).toEqual(["session.error", "session.idle"]);
  });

  it("relays the prompts that waited to a moved session's new host, in order and before later prompts", async () => {
    const notes = fresh("notes");
    const env = { COPILOTFLEET_RUNTIME_PATH: fake("obedient.mjs") };
    await using at = await HostDoors.open({ redis, storage: "shared", env });
    await at.place(fresh("ann"), "h1");
    const client = await at.raw(fresh("ann"), "h1");
    await client.requestOk("session.create", { sessionId: notes });
    const lease = { sessionId: notes, holder: fresh("ann"), ttlMs: 30_000, placeMs: 30_000 };
    expect(await at.store.leases.acquire({ ...lease, token: "the test's" })).toMatchObject({ granted: true });
    const prompts = Array.from({ length: 100 }, (_, index) => `prompt ${index}`);
    const send = async (prompt: string) => await client.request("session.send", { sessionId: notes, prompt });
    const sent = prompts.slice(0, 3).map(send);
    await eventually("the first one waits", async () => {
      const answer = await at.store.leases.acquire({ ...lease, token: "who looks", placeMs: 1_000 });
      await at.store.leases.leave(notes, "who looks");
      return !answer.granted && answer.ahead > 0;
    });
    await at.place(fresh("ann"), "h2");
    await at.endTerm(notes);
    await at.store.leases.release(notes, "the test's");
    for (const prompt of prompts.slice(3)) {
      sent.push(send(prompt));
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect((await Promise.all(sent)).filter(({ error }) => error !== undefined)).toEqual([]);
    expect(await at.session(notes)).toMatchObject({ host: "h2" });
    const said = () =>
      client.received.flatMap(({ params }) => {
        const { type, data } = (params?.event ?? {}) as { type?: string; data?: { content: string } };
        return type === "user.message" ? [data?.content] : [];
      });
    await eventually("word of the last one", () => said().length >= prompts.length);
    expect(said()).toEqual(prompts);
  });
});

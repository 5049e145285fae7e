import { approveAll } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { issueToken } from "../../src/identity/tokens.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe.each([{ isolation: "per-user" }, { isolation: "shared" }] as const)(
  "the front door, with a collaborative session on $isolation servers,",
  ({ isolation }) => {
    let at: DoorFleet;
    let tokens: Record<"ann" | "ben" | "eve", string>;
    beforeAll(async () => {
      at = await DoorFleet.open({ config: { isolation, serve: { turnWait: "3s" }, lock: { ttl: "20s" } } });
      tokens = { ann: await at.token("ann"), ben: await at.token("ben"), eve: await at.token("eve") };
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    /** Creates a collaborative session that belongs to ann and has ben as a member, leaves it, and returns its id. */
    const team = async ({ fleet } = at) => {
      const sessionId = unused("team");
      const session = await fleet.sessions.create({ user: "ann", members: ["ben"], sessionId });
      await fleet.sessions.leave(session);
      return sessionId;
    };
    const join = async (user: "ann" | "ben", sessionId: string, url = at.url, token = tokens[user]) => {
      const client = await RawClient.as(url, token);
      expect(await client.request("session.resume", { sessionId })).toMatchObject({ result: { sessionId } });
      return client;
    };
    const replies = ({ received }: RawClient, sessionId: string) =>
      received.flatMap(({ method, params }) => {
        const { event } = (params ?? {}) as { event?: { type: string; data: { content?: string } } };
        return method === "session.event" && params?.sessionId === sessionId && event?.type === "assistant.message"
          ? [event.data.content]
          : [];
      });

    it("runs the prompts of two members of a session one at a time, and sends all replies to both", async () => {
      // This fleet has the default turn wait, so that no prompt times out on a slow machine.
      await using patient = await DoorFleet.open({ config: { isolation } });
      const id = await team(patient);
      const [ann, ben] = [
        await join("ann", id, patient.url, await patient.token("ann")),
        await join("ben", id, patient.url, await patient.token("ben")),
      ];
      const turns = [ann.turn(id, "!delay 200 a"), ben.turn(id, "b"), ann.turn(id, "c")];
      for (const { error } of await Promise.all(turns)) expect(error).toBeUndefined();
      await eventually("all replies at both", () => replies(ann, id).length === 3 && replies(ben, id).length === 3);
      expect(replies(ann, id)).toEqual(replies(ben, id));
      expect(replies(ann, id).toSorted()).toEqual(["you said: !delay 200 a", "you said: b", "you said: c"]);
      await eventually("the lease is given back", async () => (await patient.store.leases.read(id)) === null);
      expect(await patient.store.sessions.read(id)).toMatchObject({ kind: "collaborative" });
      await eventually(
        "the turns are recorded",
        async () => ((await patient.store.sessions.read(id))?.turns ?? 0) >= 2,
      );
    });

    it("keeps a member's lease until the turn ends, and refuses another member's prompt after serve.turnWait", async () => {
      const id = await team();
      const [ann, ben] = [await join("ann", id), await join("ben", id)];
      await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 long" });
      expect(await at.store.leases.read(id)).toMatchObject({ holder: "ann" });
      const began = performance.now();
      using watch = new Stopwatch();
      const refused = await ben.request("session.send", { sessionId: id, prompt: "mine" });
      expect(refused).toMatchObject({
        error: { code: -32003, data: { code: "FLEET_SESSION_LOCKED", retryable: true } },
      });
      expect(performance.now() - began).toBeGreaterThan(2_900);
      expect(watch.ms).toBeLessThan(6_000);
      for (const method of ["session.abort", "session.shutdown", "sessions.close"]) {
        expect(await ben.request(method, { sessionId: id }), method).toMatchObject({
          error: { data: { code: "FLEET_SESSION_LOCKED" } },
        });
      }
      expect((await ann.request("session.abort", { sessionId: id })).error).toBeUndefined();
      await eventually("the lease is given back", async () => (await at.store.leases.read(id)) === null);
      expect(await ben.turn(id, "now")).toMatchObject({ result: {} });
    });

    it("lets a member cancel a waiting prompt with session.abort without ending another member's turn", async () => {
      // This fleet has the default turn wait, so that the prompt waits until the member cancels it.
      await using patient = await DoorFleet.open({ config: { isolation } });
      const id = await team(patient);
      const [ann, ben] = [
        await join("ann", id, patient.url, await patient.token("ann")),
        await join("ben", id, patient.url, await patient.token("ben")),
      ];
      await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id}` });
      const waiting = ben.request("session.send", { sessionId: id, prompt: "never mind" });
      await ben.requestOk("ping");
      expect(await ben.request("session.abort", { sessionId: id })).toMatchObject({ result: { success: true } });
      expect(await waiting).toMatchObject({ error: { data: { code: "FLEET_TURN_FAILED" } } });
      patient.model.letGo(id);
      await eventually("ann's turn ends", () => ann.events(id).includes("session.idle"));
      expect(ann.events(id)).not.toContain("abort");
    });

    it("refuses a prompt that a member inserts into a session's queue, because it would bypass the lease", async () => {
      const id = await team();
      const [ann, ben] = [await join("ann", id), await join("ben", id)];
      const queued = { sessionId: id, position: 0, message: { prompt: "sneaked in" } };
      const denied = { error: { data: { code: "FLEET_METHOD_DENIED" } } };
      expect(await ben.request("session.queue.insertAt", queued)).toMatchObject(denied);
      await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id}` });
      expect(await ben.request("session.queue.insertAt", queued)).toMatchObject(denied);
      expect((await ann.request("session.queue.clear", { sessionId: id })).error).toBeUndefined();
      at.model.letGo(id);
      await eventually("ann's turn ends", () => ann.events(id).includes("session.idle"));
      expect(JSON.stringify(ann.received)).not.toContain("sneaked in");
    });

    it("refuses a member's prompt while another member has locked the session", async () => {
      const id = await team();
      const ben = await join("ben", id);
      const lease = await at.fleet.leases.acquire(id, { user: "ann" });
      expect(await ben.request("session.send", { sessionId: id, prompt: "x" })).toMatchObject({
        error: { data: { code: "FLEET_SESSION_LOCKED" } },
      });
      await lease.release();
      expect(await ben.turn(id, "x")).toMatchObject({ result: {} });
    });

    it("accepts session.abort during a lease only from clients that connected under that lease", async () => {
      const id = await team();
      const ben = await join("ben", id);
      const lease = await at.fleet.leases.acquire(id, { user: "ann" });
      const under = { lease: { sessionId: id, fence: lease.fence } };
      const ann = await RawClient.as(at.url, (await issueToken(at.store, "ann", null, under)).token);
      const abort = async (client: RawClient) => await client.request("session.abort", { sessionId: id });
      expect((await ann.request("session.resume", { sessionId: id })).error).toBeUndefined();
      expect(await abort(ann)).toMatchObject({ result: {} });
      expect(await ann.turn(id, "mine")).toMatchObject({ result: {} });
      const locked = { error: { data: { code: "FLEET_SESSION_LOCKED" } } };
      expect(await abort(ben)).toMatchObject(locked);
      await lease.release();
      expect(await abort(ben)).toMatchObject({ result: {} });
      // ann's token belongs to the earlier lease.
      const next = await at.fleet.leases.acquire(id, { user: "ann" });
      expect(await abort(ann)).toMatchObject(locked);
      await next.release();
    });

    it("ends a member's turn when its lease is stolen, and refuses the member's prompts until the new lease ends", async () => {
      const id = await team();
      const ann = await join("ann", id);
      await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 20000 x" });
      const { fence } = (await at.store.leases.read(id)) ?? { fence: 0 };
      const stolen = await at.fleet.leases.acquire(id, { user: "ben", steal: { reason: "test" } });
      expect(stolen.fence).toBeGreaterThan(fence);
      const late = await ann.request("session.send", { sessionId: id, prompt: "late" });
      expect(late.error?.data?.code).toMatch(/^FLEET_(LEASE_LOST|SESSION_LOCKED)$/);
      await eventually("the turn is cut", () => ann.events(id).includes("session.idle"));
      expect(ann.events(id)).toEqual(expect.arrayContaining(["session.error", "abort"]));
      await stolen.release();
      expect(await ann.turn(id, "again")).toMatchObject({ result: {} });
    });

    it("lets a member use only the conversation, and hides the session from a user who is not a member", async () => {
      const id = await team();
      const ben = await join("ben", id);
      for (const [method, params] of [
        ["session.shell.exec", { command: "id" }],
        ["session.workspaces.listFiles", {}],
        ["session.permissions.setApproveAll", { enabled: true }],
        ["session.delete", {}],
        ["session.history.clearContext", { prompt: "x" }],
        ["session.options.update", { workingDirectory: "/" }],
      ] as const) {
        expect(await ben.request(method, { sessionId: id, ...params }), method).toMatchObject({
          error: { data: { code: "FLEET_METHOD_DENIED" } },
        });
      }
      const eve = await RawClient.as(at.url, tokens.eve);
      expect((await eve.request("session.delete", { sessionId: id })).result).toMatchObject({ success: false });
      for (const method of ["session.resume", "session.send", "session.getMessages", "sessions.delete"]) {
        expect(await eve.request(method, { sessionId: id }), method).toMatchObject({
          error: { data: { code: "FLEET_SESSION_NOT_FOUND" } },
        });
      }
    });

    it("lets only the owner show dialogs, and decide about the model, the mode, the name, the plan and the log", async () => {
      const id = await team();
      const [ann, ben] = [await join("ann", id), await join("ben", id)];
      const schema = { type: "object", properties: { token: { type: "string" } } };
      const requests = [
        ["session.ui.elicitation", { message: "Administrator: enter your token", requestedSchema: schema }],
        ["session.log", { message: "forged" }],
        ["session.model.switchTo", { modelId: "gpt-4.1" }],
        ["session.options.update", { model: "gpt-4.1" }],
        ["session.mode.set", { mode: "plan" }],
        ["session.name.set", { name: "forged" }],
        ["session.plan.update", { content: "forged" }],
        ["session.metadata.updateClientMetadata", { metadata: { forged: "yes" } }],
      ] as const;
      for (const [method, params] of requests) {
        expect(await ben.request(method, { sessionId: id, ...params }), method).toMatchObject({
          error: { message: expect.stringContaining("only the owner of a session") },
        });
      }
      expect(JSON.stringify(ann.received)).not.toContain("Administrator");
      for (const [method, params] of requests.slice(1, 6)) {
        expect(await ann.request(method, { sessionId: id, ...params }), method).not.toHaveProperty("error");
      }
    });

    it.runIf(isolation === "per-user")(
      "refuses a member's approval of a shell command on the owner's server, so the command does not run",
      async () => {
        const id = await team();
        const client = await at.client("ben");
        const session = await client.resumeSession(id, { onPermissionRequest: approveAll });
        const reply = await session.sendAndWait(
          '!tool bash {"command":"echo permitted-output","description":"x"}',
          30_000,
        );
        expect(reply?.data.content).not.toContain("tool said: permitted-output");
        expect(at.events).toContainEqual(
          expect.objectContaining({
            event: "denied",
            user: "ben",
            method: "session.permissions.handlePendingPermissionRequest",
          }),
        );
      },
    );
  },
);

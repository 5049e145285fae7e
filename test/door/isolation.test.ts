import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { handlingOf, knownMethods } from "../../src/door/policy/methods.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

/** Methods about a session, except those that answer without an error if the session does not exist. */
const ABOUT_A_SESSION = knownMethods().filter((method) => {
  const handling = handlingOf(method);
  return handling.about === "session" && handling.missing === undefined;
});
const REFUSALS = ["FLEET_SESSION_NOT_FOUND", "FLEET_METHOD_DENIED"];

describe.each([{ isolation: "per-user" }, { isolation: "shared" }] as const)(
  "the front door, with sessions of other users on $isolation servers,",
  ({ isolation }) => {
    let at: DoorFleet;
    let alice: RawClient;
    let mallory: RawClient;
    let tokens: { alice: string; mallory: string };
    const secret = "alices-secret-session";

    beforeAll(async () => {
      at = await DoorFleet.open({ config: { isolation } });
      // mallory has all scopes, because no scope may give access to another user's session.
      const { token: mallorys } = await at.fleet.tokens.issue("mallory", { scopes: ["read", "use", "admin"] });
      tokens = { alice: await at.token("alice"), mallory: mallorys };
      alice = await RawClient.as(at.url, tokens.alice, true);
      mallory = await RawClient.as(at.url, tokens.mallory, true);
      expect(await alice.request("session.create", { sessionId: secret })).toMatchObject({
        result: { sessionId: secret },
      });
      await alice.turnOk(secret, "the secret word is xyzzy");
      await eventually("the record of the turn", async () => (await at.store.sessions.read(secret))?.turns === 1);
    });
    afterAll(async () => {
      alice.socket.destroy();
      mallory.socket.destroy();
      await at[Symbol.asyncDispose]();
    });

    /** Everything about the session that another user could have changed. */
    const state = async () => {
      const record = await at.store.sessions.read(secret);
      const server = (await at.store.registry.read()).servers[record?.serverId ?? ""];
      const folder = join(server?.home ?? "", "session-state", secret);
      return {
        record,
        lease: await at.store.leases.read(secret),
        files: readdirSync(folder, { recursive: true, encoding: "utf8" }).sort(),
        history: readFileSync(join(folder, "events.jsonl"), "utf8"),
      };
    };

    it("refuses every method on another user's session, reveals nothing about it, and changes nothing", async () => {
      const before = await state();
      expect(before.history).toContain("xyzzy");
      expect(ABOUT_A_SESSION.length).toBeGreaterThan(200);
      for (const method of ABOUT_A_SESSION) {
        const asked = { sessionId: secret, prompt: "mine now", messages: [], name: "x", options: {}, requestId: "r" };
        const { error, result } = await mallory.request(method, asked);
        expect(result, method).toBeUndefined();
        expect(REFUSALS, method).toContain(error?.data?.code);
        const { error: unknown } = await mallory.request(method, { ...asked, sessionId: "nobodys-session" });
        expect(error?.message.replaceAll(secret, "X"), method).toBe(
          unknown?.message.replaceAll("nobodys-session", "X"),
        );
        expect(at.events, method).toContainEqual(
          expect.objectContaining({
            event: "denied",
            user: "mallory",
            method,
            sessionId: secret,
            code: error?.data?.code,
          }),
        );
      }
      for (const method of ["session.getMetadata", "sessions.getMetadata"]) {
        expect((await mallory.request(method, { sessionId: secret })).result).toEqual({});
      }
      for (const sessionId of [secret, "nobodys-session"]) {
        for (const method of ["session.detach", "session.destroy"]) {
          expect((await mallory.request(method, { sessionId })).result, method).toEqual({ success: true });
        }
        const error = `Session file not found for ${sessionId}`;
        expect((await mallory.request("session.delete", { sessionId })).result).toEqual({ success: false, error });
      }
      expect(await state()).toEqual(before);
      expect(JSON.stringify(mallory.received)).not.toContain("xyzzy");
    });

    it("refuses to create a session under an id that exists, for its owner and for other users", async () => {
      const before = await state();
      expect(await mallory.request("session.create", { sessionId: secret })).toMatchObject({
        error: { code: -32003, data: { code: "FLEET_SESSION_EXISTS" } },
      });
      expect(await alice.request("session.create", { sessionId: secret })).toMatchObject({
        error: { data: { code: "FLEET_SESSION_EXISTS" } },
      });
      expect(await state()).toEqual(before);
    });

    it("keeps other users' sessions out of a client's lists and events", async () => {
      const mallorys = unused("mallorys");
      const before = {
        alice: alice.received.length,
        mallory: mallory.received.length,
        turns: (await state()).record?.turns ?? 0,
      };
      for (const method of ["session.list", "sessions.list"]) {
        expect(JSON.stringify(await mallory.request(method))).not.toContain(secret);
        expect(JSON.stringify(await alice.request(method))).toContain(secret);
      }
      expect((await mallory.request("session.getLastId")).result).not.toMatchObject({ sessionId: secret });
      expect((await alice.request("session.getLastId")).result).toMatchObject({ sessionId: secret });
      expect(await mallory.request("session.create", { sessionId: mallorys })).toMatchObject({ result: {} });
      await Promise.all([alice.turnOk(secret, "more of it"), mallory.turnOk(mallorys, "hello")]);
      // Wait until the turn is recorded, so that later tests do not see this change.
      await eventually(
        "the record of the turn",
        async () => ((await at.store.sessions.read(secret))?.turns ?? 0) > before.turns,
      );
      expect(mallory.events(mallorys)).toContain("session.idle");
      expect(mallory.received.length).toBeGreaterThan(before.mallory + 10);
      expect(JSON.stringify(mallory.received.slice(before.mallory))).not.toContain(secret);
      expect(JSON.stringify(alice.received.slice(before.alice))).not.toContain(mallorys);
      await mallory.requestOk("session.delete", { sessionId: mallorys });
    });

    it("refuses every client the methods that end or reconfigure a server, and all unknown methods", async () => {
      // To agentRegistry.spawn, the door answers like a server that does not offer the method.
      const others = new Set(["connect", "agentRegistry.spawn"]);
      for (const method of knownMethods().filter(
        (name) => !others.has(name) && handlingOf(name).handler === "refuse",
      )) {
        const { error } = await alice.request(method, { sessionId: secret });
        expect(error, method).toMatchObject({ code: -32003, data: { code: "FLEET_METHOD_DENIED", retryable: false } });
      }
      for (const method of ["session.brandNew", "Ping", "__proto__"]) {
        const { error } = await alice.request(method, { sessionId: secret });
        expect(error, method).toMatchObject({ code: -32601, data: { code: "FLEET_METHOD_UNKNOWN", retryable: false } });
      }
      expect(await alice.request("ping", { message: "still here" })).toMatchObject({
        result: { message: "pong: still here" },
      });
    });

    it.runIf(isolation === "shared")(
      "refuses a shared server's client every method and setting that reaches beyond the client's own session",
      async () => {
        const reaching = knownMethods().filter((name) => handlingOf(name).own === true);
        expect(reaching.length).toBeGreaterThan(200);
        for (const method of reaching) {
          const { error } = await alice.request(method, { sessionId: secret });
          expect(error, method).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
        }
        const settings = [
          { workingDirectory: "/" },
          { mcpServers: { x: { command: "sh" } } },
          { configDir: "/etc" },
          { provider: { baseUrl: "http://127.0.0.1:1" } },
          { customAgents: [{ name: "a", prompt: "b", mcpServers: { x: { command: "sh" } } }] },
          { brandNewParameter: 1 },
          { cloud: {} },
        ];
        for (const extra of settings) {
          const { error } = await alice.request("session.create", { sessionId: "reaching", ...extra });
          expect(error, JSON.stringify(extra)).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
          expect(await at.store.sessions.read("reaching")).toBeNull();
        }
        for (const options of [
          { workingDirectory: "/" },
          { skipCustomInstructions: false },
          { availableTools: ["bash"] },
        ]) {
          const { error } = await alice.request("session.options.update", { sessionId: secret, ...options });
          expect(error, JSON.stringify(options)).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
        }
        expect(
          await alice.request("session.options.update", { sessionId: secret, skipCustomInstructions: true }),
        ).toMatchObject({
          result: { success: true },
        });
        const file = { type: "file", path: "/etc/passwd", displayName: "x" };
        for (const [method, params] of [
          ["session.send", { prompt: "x", attachments: [file] }],
          ["session.send", { prompt: "x", attachments: [{ ...file, type: "directory" }] }],
          ["session.sendMessages", { messages: [{ prompt: "x", attachments: [file] }] }],
          ["session.send", { prompt: "x", agentMode: "autopilot" }],
          ["session.mode.set", { mode: "autopilot" }],
          ["session.queue.insertAt", { position: 0, message: { prompt: "x", attachments: [file] } }],
        ] as const) {
          const { error } = await alice.request(method, { sessionId: secret, ...params });
          expect(error, `${method} ${JSON.stringify(params)}`).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
        }
        const { result } = await alice.request("session.tools.getCurrentMetadata", { sessionId: secret });
        expect(JSON.stringify(result)).not.toMatch(/"bash"/);
      },
    );

    it.each([
      [
        "the key sessionId twice, the other user's session last",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"mine","sessionId":"${secret}"}}`,
      ],
      [
        "the key sessionId twice, the other user's session first",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret}","sessionId":"mine"}}`,
      ],
      [
        "an escape in the key sessionId",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"session\\u0049d":"${secret}"}}`,
      ],
      [
        "the key method twice",
        `{"jsonrpc":"2.0","id":1,"method":"ping","method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      [
        "an escape in the key method",
        `{"jsonrpc":"2.0","id":1,"m\\u0065thod":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      [
        "the key params twice",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"mine"},"params":{"sessionId":"${secret}"}}`,
      ],
      [
        "the key Params in place of params",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","Params":{"sessionId":"${secret}"}}`,
      ],
      [
        "the key SessionId in place of sessionId",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"SessionId":"${secret}"}}`,
      ],
      [
        "the key session_id in place of sessionId",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"session_id":"${secret}"}}`,
      ],
      [
        "the session id one level deeper",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"params":{"sessionId":"${secret}"}}}`,
      ],
      [
        "the session id in a list",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":["${secret}"]}}`,
      ],
      [
        "params in a list",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":[{"sessionId":"${secret}"}]}`,
      ],
      [
        "a path in place of the session id",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"../session-state/${secret}"}}`,
      ],
      [
        "a blank before the session id",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":" ${secret}"}}`,
      ],
      [
        "a NUL after the session id",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret}\\u0000"}}`,
      ],
      [
        "the session id in capitals",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret.toUpperCase()}"}}`,
      ],
      [
        "a JSON-RPC batch",
        `[{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret}"}}]`,
      ],
      [
        "a request inside a result",
        `{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"result":[{"method":"session.getMessages"}]}`,
      ],
      [
        "another JSON-RPC version",
        `{"jsonrpc":"1.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      ["no JSON-RPC version", `{"id":1,"method":"session.getMessages","params":{"sessionId":"${secret}"}}`],
      [
        "the session id below __proto__",
        `{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"__proto__":{"sessionId":"${secret}"}}}`,
      ],
      [
        "a byte order mark",
        `\uFEFF{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      [
        "a second message in the same frame",
        `{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}{"jsonrpc":"2.0","id":2,"method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      ["a notification", `{"jsonrpc":"2.0","method":"session.abort","params":{"sessionId":"${secret}"}}`],
      ["an answer that nobody asked for", `{"jsonrpc":"2.0","id":1,"result":{"sessionId":"${secret}"}}`],
      [
        "an answer and a request in one",
        `{"jsonrpc":"2.0","id":1,"result":{},"method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
      ["an answer to the front door's own requests", `{"jsonrpc":"2.0","id":"fleet-0","result":{}}`],
      [
        "a fractional request id",
        `{"jsonrpc":"2.0","id":1.5,"method":"session.getMessages","params":{"sessionId":"${secret}"}}`,
      ],
    ])("gives a frame forged with %s no access to another user's session", async (_, text) => {
      const before = await state();
      const forger = await RawClient.as(at.url, tokens.mallory);
      const seen = at.events.length;
      forger.frame(text);
      // The front door has finished with the frame when it answers the next request or ends the connection.
      const next = await forger.request("ping", { message: "next" }).catch(() => "closed");
      const answers = forger.received.filter(({ id }) => id === 1);
      for (const answer of answers)
        expect(answer.result === undefined || JSON.stringify(answer.result) === "{}").toBe(true);
      expect(JSON.stringify(forger.received)).not.toContain("xyzzy");
      const logged = at.events.slice(seen).filter(({ user }) => user === "mallory");
      if (next !== "closed")
        expect(logged.map(({ event }) => event)).toEqual([expect.stringMatching(/denied|dropped/)]);
      else expect(logged.map(({ event }) => event)).toContain("protocol-error");
      expect(await state()).toEqual(before);
      expect((await alice.request("ping", { message: "x" })).error).toBeUndefined();
    });

    it("ignores a request with the id of an unanswered request, and answers the earlier request once", async () => {
      const sessionId = unused("busy");
      const client = await RawClient.as(at.url, tokens.alice);
      const seen = at.events.length;
      await client.requestOk("session.create", { sessionId });
      await client.requestOk("session.send", { sessionId, prompt: "!delay 60000 x" });
      const answers = () => client.received.filter(({ id }) => id === 7);
      // The server answers this when the turn has ended.
      client.send({ id: 7, method: "session.tasks.waitForPending", params: { sessionId } });
      client.send({ id: 7, method: "ping", params: { message: "the same id" } });
      await eventually("the refusal", () =>
        at.events.slice(seen).some(({ detail }) => detail === "an id that is in use"),
      );
      await client.requestOk("ping", { message: "behind" });
      expect(answers()).toEqual([]);
      await client.requestOk("session.abort", { sessionId });
      await eventually("the answer", () => answers().length > 0);
      await client.requestOk("ping", { message: "behind both" });
      expect(answers()).toHaveLength(1);
      expect(answers()[0]).not.toMatchObject({ result: { message: expect.anything() } });
    });
  },
);

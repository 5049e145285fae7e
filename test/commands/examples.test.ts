import { once } from "node:events";
import { mkdtemp, readdir } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Express } from "express";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { serviceApp } from "../../examples/service.js";
import { webApp } from "../../examples/web/app.js";
import { Fleet } from "../../src/index.js";
import { barriers, noChromium, TestBrowser } from "../console/harness.js";
import { portVariables, testPorts } from "../fixtures/fleets/ports.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

/**
 * Tests the example applications. Where several copies of a service run, they share one state folder, as behind a load
 * balancer.
 */

type FleetConfig = NonNullable<NonNullable<Parameters<typeof Fleet.open>[0]>["config"]>;

let folder: string;
const fleets: Fleet[] = [];
const servers: Server[] = [];

/** @param home the state folder, below the folder of this file's tests */
async function openFleet(home = "state", config: FleetConfig = { provider: { type: "echo" } }): Promise<Fleet> {
  const surroundings = {
    COPILOTFLEET_HOME: join(folder, home),
    ...portVariables(testPorts()),
    COPILOT_OFFLINE: "true",
  };
  const fleet = await Fleet.open({ cwd: folder, env: { ...process.env, ...surroundings }, config });
  fleets.push(fleet);
  return fleet;
}

/** Starts a server without an application, because the application needs the server's address first. */
async function listen(): Promise<{ server: Server; url: string }> {
  const server = createServer();
  servers.push(server);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

async function start(app: Express): Promise<string> {
  const { server, url } = await listen();
  server.on("request", app);
  return url;
}

async function post(
  url: string,
  user: string,
  body: unknown,
): Promise<{ status: number; body: Record<string, unknown> }> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", "x-authenticated-user": user },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-examples-"));
});

afterAll(async () => {
  for (const server of servers) server.close();
  for (const fleet of new Map(fleets.map((each) => [each.stateRoot, each])).values()) {
    const running = (await fleet.servers.list()).filter(({ pid }) => pid !== null);
    await fleet.servers.stop(
      running.map(({ id }) => id),
      { force: true },
    );
  }
  await Promise.all(fleets.map((open) => open.close()));
  await removeFolder(folder);
});

describe("the web application", () => {
  let fleet: Fleet;
  let api: string;
  let origin: string;
  let browser: TestBrowser;

  beforeAll(async () => {
    const { server, url } = await listen();
    origin = url;
    fleet = await openFleet("web", {
      provider: { type: "echo" },
      session: { approve: "ask" },
      identity: { jwt: [{ issuer: origin, audience: "copilotfleet", jwks: `${origin}/jwks.json` }] },
      http: { origins: [origin] },
    });
    api = (await fleet.doors.openHttp({ listen: "127.0.0.1:0" })).url;
    server.on("request", await webApp({ origin, api, isPassword: (_user, password) => password === "correct" }));
    if (noChromium === null) browser = await TestBrowser.open(origin);
  });
  afterAll(async () => await browser?.[Symbol.asyncDispose]());

  const signOn = async (user: string, password: string) =>
    await fetch(`${origin}/sign-on`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user, password }),
    });
  const tokenFor = async (cookie: string) =>
    await fetch(`${origin}/token`, { method: "POST", headers: { Cookie: cookie } });

  it("the web application gives a token only to a user who has signed on, and the token names that user", async () => {
    const cookie = (await signOn("alice", "correct")).headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/; HttpOnly; SameSite=Strict$/);
    const { token } = (await (await tokenFor(cookie)).json()) as { token: string };
    const me = await fetch(`${api}/v1/me`, { headers: { Authorization: `Bearer ${token}`, Origin: origin } });
    expect(await me.json()).toMatchObject({ user: "alice", scopes: ["use"], via: "jwt" });
    expect(me.headers.get("access-control-allow-origin")).toBe(origin);
    expect((await signOn("alice", "wrong")).status).toBe(401);
    for (const body of ["null", '{"user":7,"password":"correct"}']) {
      const init = { method: "POST", headers: { "Content-Type": "application/json" }, body };
      expect((await fetch(`${origin}/sign-on`, init)).status, body).toBeGreaterThanOrEqual(400);
    }
    expect((await tokenFor("signed-on=guessed")).status).toBe(401);
    await fetch(`${origin}/sign-off`, { method: "POST", headers: { Cookie: cookie } });
    expect((await tokenFor(cookie)).status).toBe(401);
  });

  it("the web application publishes only the public part of its key", async () => {
    const { keys } = (await (await fetch(`${origin}/jwks.json`)).json()) as { keys: object[] };
    expect(keys).toEqual([expect.objectContaining({ kty: "EC", alg: "ES256" })]);
    expect(keys[0]).not.toHaveProperty("d");
  });

  describe.skipIf(noChromium !== null)(
    `its page in Chromium${noChromium === null ? "" : ` (skipped: ${noChromium})`}`,
    () => {
      const conversation = async (page: Page) => await page.locator("#conversation li").allTextContents();
      const send = async (page: Page, message: string, reply: string) => {
        await page.getByLabel("Message").fill(message);
        await page.getByRole("button", { name: "Send" }).click();
        await page.getByText(reply, { exact: true }).waitFor();
      };
      const openAs = async (user: string) => {
        const page = await browser.person();
        await page.goto("/");
        await page.getByLabel("User").fill(user);
        await page.getByLabel("Password").fill("correct");
        await page.getByRole("button", { name: "Sign on" }).click();
        await page.getByLabel("Message").waitFor();
        return page;
      };

      it("the web page keeps a conversation through a server crash and a reload, until the user ends it", async () => {
        const [alice, bob] = [unused("alice"), unused("bob")];
        const page = await openAs(alice);
        await send(page, "one", "[turn 1] one");
        const { pid } = await fleet.servers.ofUser(alice);
        if (pid !== null) process.kill(pid, "SIGKILL");
        await send(page, "two", "[turn 2] two");
        await page.reload();
        await page.getByText("[turn 2] two", { exact: true }).waitFor();
        expect(await conversation(page)).toEqual(["one", "[turn 1] one", "two", "[turn 2] two"]);

        const other = await openAs(bob);
        expect(await conversation(other)).toEqual([]);
        await send(other, "mine", "[turn 1] mine");

        await page.getByRole("button", { name: "End the conversation" }).click();
        await expect.poll(async () => (await conversation(page)).length).toBe(0);
        await send(page, "three", "[turn 1] three");
        expect(await fleet.sessions.list({ user: alice })).toHaveLength(1);
        const offences = browser.offences.filter(
          ({ kind, text }) => kind !== "foreign request" || !text.startsWith(api),
        );
        expect(offences).toEqual([]);
        expect(await barriers(page)).toEqual([]);
      });

      it("the web page shows the agent's permission request and question, and the agent gets the answers", async () => {
        const page = await openAs(unused("alice"));
        const say = async (message: string) => {
          await page.getByLabel("Message").fill(message);
          await page.getByRole("button", { name: "Send" }).click();
        };
        const command = { command: "echo hi from the agent", description: "greets" };
        await say(`!tool bash ${JSON.stringify(command)}`);
        await page.getByText("echo hi from the agent").last().waitFor();
        await page.getByRole("button", { name: "Allow" }).click();
        await page.getByText(/\] hi from the agent/).waitFor();
        expect(await page.getByRole("button", { name: "Allow" }).count()).toBe(0);
        await say(`!tool ask_user ${JSON.stringify({ question: "Which colour?", choices: ["red", "blue"] })}`);
        await page.getByRole("button", { name: "blue" }).click();
        await page.getByText(/\] .*blue/).waitFor();
      });

      it("the web page stops a reply on request, and then accepts the next message", async () => {
        const page = await openAs(unused("alice"));
        await page.getByLabel("Message").fill("!delay 60000 late");
        await page.getByRole("button", { name: "Send" }).click();
        await expect
          .poll(async () => {
            await page.getByRole("button", { name: "Stop the reply" }).click();
            return await page.getByRole("button", { name: "Send" }).isEnabled();
          })
          .toBe(true);
        await page.getByLabel("Message").fill("next");
        await page.getByRole("button", { name: "Send" }).click();
        await page.getByText(/\] next$/).waitFor();
      });
    },
  );
});

describe("the service", () => {
  const SERVICE = { team: ["alice"], stateOfOrder: async () => "unknown" };
  const routes = [
    ["/api/analyze", "prompt"],
    ["/team-chat", "message"],
  ] as const;
  const raw = async (url: string, init: RequestInit): Promise<{ status: number; type: string; body: unknown }> => {
    const response = await fetch(url, { method: "POST", ...init });
    return {
      status: response.status,
      type: response.headers.get("content-type") ?? "",
      body: await response.json(),
    };
  };
  const alice = { "content-type": "application/json", "x-authenticated-user": "alice" };
  const json = { type: expect.stringContaining("application/json") };

  it.each(routes)("%s answers 401 to a request without an identity, and 422 to an invalid one", async (path, field) => {
    const url = await start(serviceApp(await openFleet(), SERVICE));
    const body = JSON.stringify({ [field]: "hi" });
    const init = { headers: { "content-type": "application/json" }, body };
    expect(await raw(`${url}${path}`, init)).toMatchObject({
      status: 401,
      ...json,
      body: { error: { code: "UNAUTHENTICATED" } },
    });
    const invalid = { headers: { ...init.headers, "x-authenticated-user": "../etc" }, body };
    expect(await raw(`${url}${path}`, invalid)).toMatchObject({
      status: 422,
      ...json,
      body: { error: { code: "FLEET_USAGE_INVALID" } },
    });
  });

  it.each(routes)("%s answers 400 to a request with a body that it cannot use", async (path, field) => {
    const url = await start(serviceApp(await openFleet(), SERVICE));
    for (const body of ["{", "null", "[]", "{}", `{"${field}":""}`, `{"${field}":7}`, `{"${field}":{"a":1}}`]) {
      expect(await raw(`${url}${path}`, { headers: alice, body }), body).toMatchObject({
        status: 400,
        ...json,
        body: { error: { code: "BAD_REQUEST", message: expect.any(String) } },
      });
    }
    const plain = { headers: { ...alice, "content-type": "text/plain" }, body: "hi" };
    expect(await raw(`${url}${path}`, plain)).toMatchObject({ status: 400 });
  });

  it("the example service answers in JSON with 404 to an unknown path and 413 to an oversized body", async () => {
    const url = await start(serviceApp(await openFleet(), SERVICE));
    expect(await raw(`${url}/nothing`, { headers: alice })).toMatchObject({ status: 404, ...json });
    const large = JSON.stringify({ message: "x".repeat(200_000) });
    expect(await raw(`${url}/team-chat`, { headers: alice, body: large })).toMatchObject({ status: 413, ...json });
  });

  it("the example service answers 500 in JSON when it fails, and logs the reason without sending it", async () => {
    const fleet = await openFleet();
    vi.spyOn(fleet.sessions, "create").mockRejectedValue(new Error("secret"));
    const url = await start(serviceApp(fleet, SERVICE));
    const logged = vi.spyOn(console, "error").mockImplementation(() => undefined);
    const answer = await raw(`${url}/api/analyze`, { headers: alice, body: '{"prompt":"hi"}' });
    expect(answer).toMatchObject({ status: 500, body: { error: { code: "INTERNAL" } } });
    expect(JSON.stringify(answer)).not.toContain("secret");
    expect(logged).toHaveBeenCalledWith(expect.objectContaining({ message: "secret" }));
    logged.mockRestore();
  });

  it("/team-chat answers each member's own message, keeps one history for all, and answers 404 to a user who is not a member", async () => {
    const team = ["alice", "bob", "carol"];
    const home = unused("team");
    const urls = await Promise.all(
      team.map(async () => await start(serviceApp(await openFleet(home), { ...SERVICE, team }))),
    );
    const asked = team.flatMap((user, index) => [0, 1, 2].map((round) => ({ user, index, text: `${user} ${round}` })));
    const replies = await Promise.all(
      asked.map(async ({ user, index, text }) => ({
        text,
        ...(await post(`${urls[index]}/team-chat`, user, { message: text })),
      })),
    );
    for (const { text, body } of replies) expect(body.content).toMatch(new RegExp(`^\\[turn \\d+\\] ${text}$`));
    const turns = replies.map(({ body }) => Number(/\d+/.exec(String(body.content))?.[0])).sort((a, b) => a - b);
    expect(turns).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect((await post(`${urls[0]}/team-chat`, "mallory", { message: "hi" })).status).toBe(404);
  });

  it("/api/analyze answers a prompt and leaves no session, not even on disk", async () => {
    const fleet = await openFleet();
    const url = await start(serviceApp(fleet, SERVICE));
    for (const _ of [1, 2])
      expect((await post(`${url}/api/analyze`, "dora", { prompt: "sum" })).body).toEqual({ result: "[turn 1] sum" });
    expect(await fleet.sessions.list({ user: "dora" })).toEqual([]);
    expect(await readdir(join((await fleet.servers.ofUser("dora")).home, "session-state"))).toEqual([]);
  });

  it("/api/analyze lets the model call the tool of the service", async () => {
    await using model = await startToolModel();
    const fleet = await openFleet(unused("tools"), {
      provider: { type: "openai", baseUrl: model.baseUrl },
      session: { model: "gpt-5" },
    });
    const asked: string[] = [];
    const stateOfOrder = async (order: string) => {
      asked.push(order);
      return "sent";
    };
    const url = await start(serviceApp(fleet, { ...SERVICE, stateOfOrder }));
    const { body } = await post(`${url}/api/analyze`, "dora", { prompt: '!tool order_state {"order":"1001"}' });
    expect(body).toEqual({ result: "done" });
    expect(asked).toContain("1001");
  });
});

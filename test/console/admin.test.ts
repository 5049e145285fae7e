import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { TestFleet } from "../fixtures/commands/cli.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { ask, type Reply } from "../http/harness.js";
import { barriers, noChromium, overflow, signIn, TestBrowser } from "./harness.js";

const PAGES = ["Servers", "Users", "All sessions", "Tokens", "Charts"] as const;
const LONG = "Wolfeschlegelsteinhausenbergerdorff".repeat(4).slice(0, 120);

describe.skipIf(noChromium !== null)("the pages for operators", () => {
  let commands: TestFleet;
  let serving: Serving;
  let url: string;
  let browser: TestBrowser;
  let admin: string;
  let alice: string;

  const issue = async (user: string, ...scopes: string[]) => {
    const given = scopes.flatMap((scope) => ["--scope", scope]);
    return (await commands.json<{ token: string }>(["token", "issue", "--user", user, ...given, "--ttl", "1h"])).token;
  };
  const api = async (token: string, method: string, path: string, body?: object): Promise<Reply> =>
    await ask(url, method, path, { token, ...(body === undefined ? {} : { body }) });
  const serverOf = async (user: string) => {
    const { servers } = (await api(admin, "GET", `/v1/servers?user=${user}`)).json;
    return servers[0] as { id: string; pid: number | null; state: string };
  };

  beforeAll(async () => {
    commands = new TestFleet(FAST_HEALTH);
    serving = await serve(commands, { args: ["--http", "127.0.0.1:0"] });
    url = String((await serving.logged("serving")).http);
    [admin, alice] = [await issue("root", "admin", "issue"), await issue("alice", "use")];
    await api(alice, "POST", "/v1/sessions", { id: "first", purpose: "review", members: ["bob"] });
    await api(alice, "POST", "/v1/sessions/first/turns", { prompt: "hello" });
    browser = await TestBrowser.open(url);
  });
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await serving?.end();
    await commands?.end();
  });
  afterEach(async () => {
    await browser.closePages();
    expect(browser.offences.splice(0)).toEqual([]);
  });

  async function operator(options?: Parameters<TestBrowser["person"]>[0]): Promise<Page> {
    const page = await browser.person(options);
    await signIn(page, admin);
    return page;
  }

  async function open(page: Page, name: (typeof PAGES)[number]): Promise<void> {
    await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name, exact: true }).click();
    await page.getByRole("heading", { name, level: 1 }).waitFor();
  }

  it("a page whose code cannot be loaded offers to reload the console", async () => {
    const page = await operator();
    await page.route("**/console/*.js", async (route) => await route.abort());
    await page.getByRole("link", { name: "Servers", exact: true }).click();
    await page.getByText("This page could not be loaded.").waitFor();
    await page.unroute("**/console/*.js");
    await page.getByRole("button", { name: "Reload the console" }).click();
    await page.getByRole("heading", { name: "Servers", level: 1 }).waitFor();
  });

  it("a user without the scope admin sees no operator pages, and does not load their code", async () => {
    const page = await browser.person();
    const loaded: string[] = [];
    page.on("request", (request) => loaded.push(new URL(request.url()).pathname));
    await signIn(page, alice);
    await page.getByRole("link", { name: /first/ }).waitFor();
    const links = await page.getByRole("navigation", { name: "Pages" }).getByRole("link").allTextContents();
    expect(links).toEqual(["Sessions", "Usage", "Events"]);
    await page.goto("/#/servers");
    await page.getByText("There is no such page.").waitFor();
    expect(loaded.filter((path) => /pages|charts/.test(path))).toEqual([]);
  });

  it("after an operator confirms the listed effects of a restart, the server gets a new process", async () => {
    const page = await operator();
    await open(page, "Servers");
    const { id, pid } = await serverOf("alice");
    await page
      .getByRole("row", { name: new RegExp(id) })
      .getByText(`process ${pid}`)
      .waitFor();
    await page.getByRole("button", { name: `Restart ${id}` }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByText("Its session stays on disk.").waitFor();
    await dialog.getByText("Then the server starts again").waitFor();
    await dialog.getByRole("button", { name: "Restart", exact: true }).click();
    await page.getByRole("status").getByText("runs again").waitFor();
    const after = await serverOf("alice");
    expect(after).toMatchObject({ id, state: "ready" });
    expect(after.pid).not.toBe(pid);
    await page
      .getByRole("row", { name: new RegExp(id) })
      .getByText(`process ${after.pid}`)
      .waitFor();
  });

  it("an operator drains a server, starts it again, and stops it without waiting for turns", async () => {
    const page = await operator();
    await open(page, "Servers");
    const { id } = await serverOf("alice");
    const act = async (button: string, confirm: string, state: RegExp, isForced = false) => {
      await page.getByRole("button", { name: `${button} ${id}` }).click();
      const dialog = page.getByRole("dialog");
      if (isForced) await dialog.getByLabel("Do not wait for turns").check();
      await dialog.getByRole("button", { name: confirm, exact: true }).click();
      await dialog.waitFor({ state: "detached" });
      await page
        .getByRole("row", { name: new RegExp(id) })
        .getByText(state)
        .waitFor();
    };
    await act("Drain", "Drain", /^stopped$/);
    expect(await serverOf("alice")).toMatchObject({ pid: null, state: "stopped" });
    await act("Start", "Start", /^ready$/);
    await act("Stop", "Stop now", /^stopped$/, true);
    expect(await serverOf("alice")).toMatchObject({ pid: null, state: "stopped" });
  });

  it("an operator sees the sessions of all users by owner, but cannot open another user's conversation", async () => {
    const page = await operator();
    await open(page, "All sessions");
    const row = page.getByRole("row", { name: /first/ });
    await row.getByText("and 1 member").waitFor();
    expect(await row.getByRole("link").allTextContents()).toEqual(["alice"]);
    await row.getByRole("link", { name: "alice" }).click();
    await page.getByRole("heading", { name: "Sessions of alice" }).waitFor();
    await page.goto("/#/sessions/first");
    await page
      .getByText(/no session/i)
      .first()
      .waitFor();
  });

  it("an operator starts and stops a user's server, suspends and resumes the user, sets limits and purges the user", async () => {
    const dave = await issue("dave", "use");
    const page = await operator();
    await open(page, "Users");
    const row = page.getByRole("row", { name: /^dave/ });
    const act = async (button: string, confirm: string) => {
      await row.getByRole("button", { name: `${button} dave` }).click();
      await page.getByRole("dialog").getByRole("button", { name: confirm, exact: true }).click();
      await page.getByRole("dialog").waitFor({ state: "detached" });
    };
    await row.getByText("no server").waitFor();
    await act("Start", "Start the server");
    await row.getByText("ready").waitFor();
    expect(await serverOf("dave")).toMatchObject({ state: "ready" });
    await act("Stop", "Stop");
    await row.getByText("stopped").waitFor();
    await act("Suspend", "Suspend");
    await row.getByText("suspended").waitFor();
    expect((await api(dave, "GET", "/v1/me")).status).toBe(403);
    await act("Resume", "Resume");
    await row.getByText("stopped").waitFor();
    expect((await api(dave, "GET", "/v1/me")).status).toBe(200);
    await row.getByRole("button", { name: "Limits dave" }).click();
    await page.getByRole("dialog").getByLabel("Turns per minute").fill("7");
    await page.getByRole("dialog").getByRole("button", { name: "Set the limits" }).click();
    await page.getByRole("dialog").waitFor({ state: "detached" });
    expect((await api(admin, "GET", "/v1/users/dave/limits")).json).toMatchObject({ limits: { turnsPerMinute: 7 } });
    await act("Purge", "Purge");
    await page.getByText("The data of dave is erased.").waitFor();
    await row.waitFor({ state: "detached" });
    expect((await api(dave, "GET", "/v1/me")).status).toBe(401);
  });

  it("a long name is cut in the middle, and no table of an operator is wider than the page", async () => {
    const token = await issue(LONG, "use");
    const id = `${"s".repeat(20)}-${"t".repeat(30)}`;
    await api(token, "POST", "/v1/sessions", { id });
    const page = await operator({ viewport: { width: 1280, height: 800 } });
    for (const name of ["Users", "All sessions", "Tokens", "Servers"] as const) {
      await open(page, name);
      const cell = page.getByTitle(LONG).first();
      await cell.waitFor();
      expect(await cell.textContent()).toBe(`${LONG.slice(0, 18)}…${LONG.slice(-17)}`);
      const wide = await page.evaluate(
        "[...document.querySelectorAll('.table')].map((e) => e.scrollWidth - e.clientWidth)",
      );
      expect([name, wide]).toEqual([name, (wide as number[]).map(() => 0)]);
    }
    await page.setViewportSize({ width: 390, height: 800 });
    expect(await overflow(page)).toBe(0);
    await page.goto(`/#/usage/${LONG}`);
    await page.getByRole("heading", { name: /^Usage of/ }).waitFor();
    expect(await overflow(page)).toBe(0);
  });

  it("an operator issues a token, sees its secret once, and revokes it, after which the API refuses it", async () => {
    const page = await operator();
    await open(page, "Tokens");
    await page.getByRole("button", { name: "Issue a token" }).click();
    const form = page.getByRole("dialog");
    await form.getByRole("textbox", { name: "User" }).fill("carol");
    await form.getByLabel(/^read/).check();
    await form.getByRole("button", { name: "Issue", exact: true }).click();
    const secret = page.getByRole("dialog").locator("code");
    await expect.poll(async () => await secret.textContent()).toMatch(/^cft_/);
    const token = (await secret.textContent()) ?? "";
    expect((await api(token, "GET", "/v1/me")).json).toMatchObject({ user: "carol", scopes: ["read"] });
    await page.getByRole("button", { name: "Done" }).click();
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await page.getByRole("row", { name: /carol/ }).waitFor();
    expect(await page.content()).not.toContain(token);

    await page.getByRole("button", { name: /Revoke token \w+ of carol/ }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Revoke the token" }).click();
    await page.getByRole("row", { name: /carol/ }).waitFor({ state: "detached" });
    expect((await api(token, "GET", "/v1/me")).status).toBe(401);
  });

  it("a table keeps its order and the focus when the page refreshes itself", async () => {
    const page = await operator();
    await open(page, "Tokens");
    await page.getByRole("button", { name: "Scope" }).click();
    await page.getByRole("button", { name: "Scope" }).click();
    await issue("zoe", "use");
    await page.getByRole("row", { name: /zoe/ }).waitFor();
    expect(await page.getByRole("columnheader", { name: "Scope" }).getAttribute("aria-sort")).toBe("descending");
    expect(await page.evaluate("document.activeElement.textContent")).toBe("Scope");
  });

  it("the page Charts draws the samples of serve, with current values as text and all values as tables", async () => {
    const page = await operator();
    await open(page, "Charts");
    const chart = page.getByRole("region", { name: "Turns per minute" });
    await chart.getByRole("img", { name: /Turns per minute in the last hour\. Now: ended \d+/ }).waitFor();
    await api(alice, "POST", "/v1/sessions/first/turns", { prompt: "again" });
    const { hosts } = (await api(admin, "GET", "/v1/samples")).json;
    expect(hosts[0].samples.length).toBeGreaterThan(3);
    const memory = page.getByRole("region", { name: "Memory" });
    await memory.getByText("Values as a table").click();
    await expect.poll(async () => await memory.getByRole("row").count()).toBeGreaterThan(3);
    const drawn = await page.evaluate(
      "[...document.querySelectorAll('.plot canvas')].map((canvas) => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size > 2)",
    );
    expect(drawn).toEqual(Array.from({ length: 6 }, () => true));
  });

  it("on a screen of 390 pixels, the links to all pages are visible", async () => {
    const page = await operator({ viewport: { width: 390, height: 800 } });
    const nav = page.getByRole("navigation", { name: "Pages" });
    expect(await nav.evaluate((element) => element.scrollWidth - element.clientWidth)).toBe(0);
    await nav.getByRole("link", { name: "Charts" }).click({ trial: true });
  });

  it("the operator pages have no serious accessibility barriers, and fit into 390 pixels", async () => {
    const wide = await operator();
    const narrow = await operator({ viewport: { width: 390, height: 800 }, colorScheme: "dark" });
    for (const page of [wide, narrow]) {
      for (const name of PAGES) {
        await open(page, name);
        await page.getByText("Loading…").waitFor({ state: "detached" });
        expect([name, await barriers(page), await overflow(page)]).toEqual([name, [], 0]);
      }
    }
  });
});

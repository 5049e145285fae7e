import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { EVENT_TYPES } from "../../src/base/event.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { TestApi } from "../http/harness.js";
import { barriers, noChromium, overflow, signIn, TestBrowser } from "./harness.js";

const DAY_MS = 86_400_000;
/** The time of the recorded usage. The clock is read only once, because the day may end during the tests. */
const STARTED = Date.now();
const CHINESE = "李雷";
const ARABIC = "ليلى";

describe.skipIf(noChromium !== null)("the pages about usage and events", () => {
  let at: TestApi;
  let store: Store;
  let browser: TestBrowser;
  let admin: string;

  beforeAll(async () => {
    const config = { limits: { default: { turnsPerMinute: 10 }, groups: { interns: { tokensPerDay: 2_000 } } } };
    at = await TestApi.open({ config });
    admin = await at.token("root", ["admin"]);
    store = openStore("file", at.fleet.stateRoot);
    use("alice", "gpt-4.1", 1_200, 300);
    use("alice", "gpt-4.1", 4_000, 700, STARTED - 3 * DAY_MS);
    use(CHINESE, null, null, null);
    use(ARABIC, "gpt-4.1", 10, 5);
    await store.usage.settled();
    browser = await TestBrowser.open(at.door.url);
  });
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await store?.close();
    await at[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    await browser.closePages();
    expect(browser.offences.splice(0)).toEqual([]);
  });

  let uses = 0;
  /** Records a turn with one model request, as the ledger would. */
  function use(user: string, model: string | null, input: number | null, output: number | null, time = STARTED): void {
    uses += 1;
    const common = { at: new Date(time).toISOString(), user, sessionId: `s-${user}`, model, host: null, tokenId: null };
    const none = { inputTokens: null, outputTokens: null, cacheReadTokens: null, credits: null, ms: null };
    const numbers = { ...none, inputTokens: input, outputTokens: output };
    const [turn, request] = [
      { ...common, ...none, id: `turn-${uses}`, kind: "turn" },
      { ...common, ...none, id: `request-${uses}`, kind: "request" },
    ] as const;
    store.usage.append([
      { ...turn, outcome: "begun" },
      { ...request, outcome: "begun" },
      { ...request, ...numbers, outcome: "completed" },
      { ...turn, outcome: "completed" },
    ]);
  }

  async function person(token: string, name: "Usage" | "Events", options = {}): Promise<Page> {
    const page = await browser.person(options);
    await signIn(page, token);
    await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name, exact: true }).click();
    await page.getByRole("heading", { name: new RegExp(`^${name}`), level: 1 }).waitFor();
    return page;
  }
  const cellsOf = async (page: Page, row: string) => {
    const found = page.getByRole("table", { name: /^Usage by/ }).getByRole("row", { name: row });
    await found.waitFor();
    return await found.getByRole("cell").allTextContents();
  };
  const choice = (page: Page, name: string) => page.getByRole("combobox", { name, exact: true });
  const meter = (page: Page, name: string) => page.getByRole("meter", { name });

  it("the page Usage shows users their own usage and limits, and nothing of other users", async () => {
    const page = await person(await at.token(CHINESE), "Usage");
    expect(await cellsOf(page, `s-${CHINESE}`)).toEqual([
      `s-${CHINESE}`,
      ...["1", "1", "not reported", "not reported", "not reported", "not reported"],
    ]);
    const limits = page.getByRole("region", { name: "Limits" });
    await limits.getByText("0 of 10 used").waitFor();
    expect(await meter(page, "Turns per minute").getAttribute("aria-valuetext")).toBe("0 of 10 used");
    expect(await limits.getByRole("button").count()).toBe(0);
    expect(await page.getByText("alice").count()).toBe(0);
    await page.goto("/#/usage/alice");
    await page.getByRole("heading", { name: "Usage", exact: true, level: 1 }).waitFor();
    expect(await page.getByText("s-alice").count()).toBe(0);
  });

  it("the page Usage shows operators all users' usage in each grouping and period, and as a chart by day", async () => {
    const page = await person(admin, "Usage");
    expect((await cellsOf(page, "alice")).slice(0, 5)).toEqual(["alice", "1", "1", "1,200", "300"]);
    expect((await cellsOf(page, ARABIC)).slice(3, 5)).toEqual(["10", "5"]);
    for (const [by, row] of [
      ["session", "s-alice"],
      ["model", "model not reported"],
      ["token", "no token"],
      ["day", new Date(STARTED).toISOString().slice(0, 10)],
    ] as const) {
      await choice(page, "By").selectOption(by);
      await cellsOf(page, row);
    }
    await choice(page, "By").selectOption("user");
    await choice(page, "Time").selectOption("30 days");
    await expect.poll(async () => (await cellsOf(page, "alice"))[3]).toBe("5,200");
    const chart = page.getByRole("region", { name: "Tokens by day" });
    await chart.getByRole("img", { name: /^Tokens by day .* input and output 1,515, output 305\.$/ }).waitFor();
    await chart.getByText("Values as a table").click();
    await chart.getByRole("row", { name: "4,700 700" }).waitFor();
    const bars = await page.evaluate(
      "(() => { const c = document.querySelector('.plot canvas'); return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })()",
    );
    expect(bars).toBeGreaterThan(2);
    await page.getByRole("link", { name: ARABIC }).click();
    await page.getByRole("heading", { name: `Usage of ${ARABIC}`, level: 1 }).waitFor();
    await page.getByRole("link", { name: "Show all users" }).click();
    await page.getByRole("heading", { name: "Usage of all users", level: 1 }).waitFor();
  });

  it("operators set a user's limits in a form that shows changes, and clear them after a confirmation", async () => {
    const page = await person(admin, "Usage");
    await page.getByLabel("User", { exact: true }).fill("alice");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Usage of alice", level: 1 }).waitFor();
    const limits = page.getByRole("region", { name: "Limits" });
    await limits.getByText("1,500 used, no limit").first().waitFor();
    expect(await limits.getByRole("button", { name: "Clear limits" }).isDisabled()).toBe(true);

    await limits.getByRole("button", { name: "Set limits" }).click();
    const form = page.getByRole("dialog");
    await form.getByLabel("Tokens per day").fill("lots");
    await form.getByRole("button", { name: "Set the limits" }).click();
    await form.getByRole("alert").getByText('Tokens per day: "lots" is not a limit.').waitFor();
    await form.getByLabel("Tokens per day").fill("1600");
    await form.getByLabel("Turns per minute").fill("unlimited");
    await form.getByText("Tokens per day: unlimited → 1600").waitFor();
    await form.getByText("Turns per minute: 10 → unlimited").waitFor();
    await form.getByRole("button", { name: "Set the limits" }).click();
    await form.waitFor({ state: "detached" });
    await limits.getByText("1,500 of 1,600 used, near the limit").waitFor();
    expect(await meter(page, "Tokens per day").getAttribute("aria-valuetext")).toContain("near the limit");
    expect(await at.fleet.limits.get("alice")).toMatchObject({
      limits: { turnsPerMinute: null, tokensPerDay: 1_600 },
      sources: { turnsPerMinute: "user", tokensPerDay: "user", sessions: "default" },
    });

    await limits.getByRole("button", { name: "Clear limits" }).click();
    await form.getByText("Tokens per day: 1,600 no longer counts.").waitFor();
    await form.getByRole("button", { name: "Clear the limits" }).click();
    await limits.getByText("of 10 used").waitFor();
    expect((await at.fleet.limits.get("alice")).sources).toMatchObject({ turnsPerMinute: "default" });
  });

  it("the page Events shows operators new events, filters them by type and user, and stops while paused", async () => {
    const page = await person(admin, "Events");
    const rows = page.getByRole("table", { name: "Events" }).getByRole("row");
    const type = choice(page, "Type");
    expect(await type.locator("option").allTextContents()).toEqual(["all", ...EVENT_TYPES]);
    await at.token("carol");
    await rows.nth(1).getByText("carol").first().waitFor();
    await rows.nth(1).getByText("token.issued").waitFor();

    await page.getByRole("button", { name: "Pause" }).click();
    await page.getByText("Paused.").waitFor();
    await at.token(ARABIC);
    await page.getByRole("button", { name: /^Resume and show \d+ new event/ }).waitFor();
    expect(await rows.nth(1).textContent()).toContain("carol");
    await page.getByRole("button", { name: /^Resume/ }).click();
    await rows.nth(1).getByText(ARABIC).first().waitFor();

    await type.selectOption("signon.accepted");
    await rows.filter({ hasText: "signon.accepted" }).first().waitFor();
    await expect.poll(async () => await rows.filter({ hasText: "token.issued" }).count()).toBe(0);
    await type.selectOption("all");
    await rows.getByRole("link", { name: "carol" }).first().click();
    await page.getByRole("heading", { name: "Events of carol", level: 1 }).waitFor();
    await rows.filter({ hasText: "token.issued" }).first().waitFor();
    expect(await rows.filter({ hasText: ARABIC }).count()).toBe(0);
  });

  it("the page Events shows users only the events that concern them", async () => {
    const page = await person(await at.token("dave"), "Events");
    const rows = page.getByRole("table", { name: "Events" }).getByRole("row");
    await rows.filter({ hasText: "signon.accepted" }).first().waitFor();
    await at.token("erin");
    await at.token("dave");
    await expect.poll(async () => await rows.filter({ hasText: "token.issued" }).count()).toBe(2);
    expect(await rows.filter({ hasText: "erin" }).count()).toBe(0);
    expect(await page.getByLabel("User", { exact: true }).count()).toBe(0);
  });

  it("the pages Usage and Events have no serious accessibility barriers, and fit into 390 pixels", async () => {
    await at.token("alice");
    await at.fleet.limits.set("alice", { tokensPerDay: 1_600, turnsPerMinute: 1 });
    const wide = await person(admin, "Usage");
    const narrow = await person(admin, "Usage", { viewport: { width: 390, height: 800 }, colorScheme: "dark" });
    for (const page of [wide, narrow]) {
      for (const path of ["events", "usage", "usage/alice"]) {
        await page.goto(`/#/${path}`);
        await page.getByRole("table").first().waitFor();
        await page.getByText("Loading…").waitFor({ state: "detached" });
        expect([path, await barriers(page), await overflow(page)]).toEqual([path, [], 0]);
      }
    }
    await wide.getByRole("button", { name: "Set limits" }).click();
    await wide.getByRole("dialog").getByLabel("Tokens per day").waitFor();
    expect(await barriers(wide)).toEqual([]);
  });
});

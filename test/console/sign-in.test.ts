import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { TestApi } from "../http/harness.js";
import { barriers, noChromium, overflow, signIn, TestBrowser } from "./harness.js";

describe.skipIf(noChromium !== null)("the console", () => {
  let at: TestApi;
  let browser: TestBrowser;

  beforeAll(async () => {
    at = await TestApi.open();
    browser = await TestBrowser.open(at.door.url);
    await at.fleet.sessions.create({ user: "alice", sessionId: "first", purpose: "review" });
  });
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await at[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    await browser.closePages();
    expect(browser.offences.splice(0)).toEqual([]);
  });

  it("a sign-in with a token survives a reload, and neither scripts nor storage contain the token", async () => {
    const token = await at.token("alice");
    const page = await browser.person();
    await signIn(page, token);
    await page.getByRole("link", { name: /first/ }).waitFor();
    const kept = await page.evaluate(
      "JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href])",
    );
    expect(kept).not.toContain(token.slice(4, 20));
    const [cookie] = await page.context().cookies();
    expect(cookie).toMatchObject({ httpOnly: true, sameSite: "Strict", path: "/" });
    expect(cookie?.value).not.toContain(token);

    await page.reload();
    await page.getByRole("link", { name: /first/ }).waitFor();
    const other = await browser.page(page.context());
    await other.goto("/");
    await other.getByRole("link", { name: /first/ }).waitFor();
  });

  it("the console refuses a wrong token in plain words, and then accepts the right one", async () => {
    const page = await browser.person();
    await page.goto("/");
    await page.getByLabel("Token").fill("wrong");
    await page.keyboard.press("Enter");
    await expect.poll(async () => await page.getByRole("alert").textContent()).toContain("does not accept this token");
    await page.getByLabel("Token").fill(await at.token("alice"));
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: /first/ }).waitFor();
  });

  it("a one-time code signs in only once, and is removed from the page's address at once", async () => {
    const { token: code } = await at.fleet.tokens.issueCode("alice");
    const page = await browser.person();
    await page.goto(`/#code=${code}`);
    await page.getByRole("link", { name: /first/ }).waitFor();
    expect(page.url()).not.toContain(code);
    const other = await browser.person();
    await other.goto(`/#code=${code}`);
    await expect.poll(async () => await other.getByRole("alert").textContent()).toContain("This code was used before");
    expect(other.url()).not.toContain(code);
  });

  it("the console asks before a code signs in another user, and Cancel keeps the sign-in and the code", async () => {
    const page = await browser.person();
    await signIn(page, await at.token("alice"));
    const { token: code } = await at.fleet.tokens.issueCode("mallory");
    await page.goto(`/#code=${code}`);
    const dialog = page.getByRole("dialog", { name: "Sign in as mallory?" });
    await dialog.waitFor();
    expect(page.url()).not.toContain(code);
    expect(await barriers(page)).toEqual([]);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    await page.getByRole("link", { name: /first/ }).waitFor();
    expect(await page.locator("summary", { hasText: "alice" }).count()).toBe(1);
    await page.goto(`/#code=${code}`);
    await dialog.getByRole("button", { name: "Sign in" }).click();
    await page.locator("summary", { hasText: "mallory" }).waitFor();
  });

  it("a page that nobody touches signs out within seconds after its token is revoked", async () => {
    const { id, token } = await at.fleet.tokens.issue("alice", { scopes: ["use"] });
    const page = await browser.person();
    await signIn(page, token);
    await at.fleet.tokens.revoke({ ids: [id] });
    await page.getByText("your token has expired or was revoked").waitFor();
  });

  it("signing out in one tab signs out all tabs", async () => {
    const page = await browser.person();
    await signIn(page, await at.token("alice"));
    const other = await browser.page(page.context());
    await other.goto("/");
    await other.getByRole("link", { name: /first/ }).waitFor();
    await page.locator("summary", { hasText: "alice" }).click();
    await page.getByRole("button", { name: "Sign out" }).click();
    for (const each of [page, other]) await each.getByLabel("Token").waitFor();
    expect(await page.context().cookies()).toEqual([]);
  });

  it("the sign-in and session pages have no serious accessibility barriers, and fit into 390 pixels", async () => {
    const page = await browser.person({ viewport: { width: 390, height: 800 } });
    await page.goto("/");
    await page.getByLabel("Token").waitFor();
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
    await signIn(page, await at.token("alice"));
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      await page.getByRole("link", { name: /first/ }).waitFor();
      expect([colorScheme, await barriers(page), await overflow(page)]).toEqual([colorScheme, [], 0]);
    }
    await page.getByRole("button", { name: "New session" }).click();
    await page.getByRole("dialog").waitFor();
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
  });
});

import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "../http/harness.js";
import { barriers, noChromium, overflow, picture, signIn, TestBrowser } from "./harness.js";

/** The conversation in the pictures of the docs. */
const GREETING = "What can you do here?";
const QUESTION = "Which system do you run on?";

const isPrompt = ({ role }: { role: string }) => role === "user";
const say = (text: string) => `!say ${Buffer.from(text).toString("base64")}`;

describe.skipIf(noChromium !== null)("the chat of the console", () => {
  let model: ScriptedModel;
  let at: TestApi;
  let browser: TestBrowser;

  beforeAll(async () => {
    model = await startScriptedModel({
      [GREETING]: say("I can run commands in this folder, read and write files, and search."),
      [QUESTION]: `!tool bash ${JSON.stringify({ command: "uname -sm", description: "Show the system" })}`,
    });
    const provider = { type: "openai" as const, baseUrl: model.baseUrl };
    at = await TestApi.open({ config: { provider, session: { model: "gpt-4.1", approve: "all" } } });
    browser = await TestBrowser.open(at.door.url);
  });
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await at[Symbol.asyncDispose]();
    await model[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    await browser.closePages();
    expect(browser.offences.splice(0)).toEqual([]);
  });

  /** A page on which this user has signed in and opened this session. */
  async function chatOf(user: string, id: string, options: Parameters<TestBrowser["person"]>[0] = {}): Promise<Page> {
    const page = await browser.person(options);
    await signIn(page, await at.token(user));
    await page.goto(`/#/sessions/${id}`);
    await field(page).waitFor();
    return page;
  }

  const field = (page: Page) => page.getByRole("textbox", { name: "Prompt" });

  async function session(members: readonly string[] = []): Promise<string> {
    const id = unused("chat");
    const shared = members.length === 0 ? {} : { members: [...members] };
    await at.fleet.sessions.create({ user: "alice", sessionId: id, ...shared });
    return id;
  }

  async function ask(page: Page, prompt: string): Promise<void> {
    await page.getByRole("button", { name: "Send" }).waitFor();
    await field(page).fill(prompt);
    await page.keyboard.press("Enter");
  }

  const replies = (page: Page) => page.getByRole("article", { name: "Reply" });
  it("the chat shows a reply as the model writes it, without animation if the user wants less motion", async () => {
    const page = await chatOf("alice", await session());
    await ask(page, "!pause half one two three four");
    await replies(page).getByText("two three").waitFor();
    expect(await replies(page).textContent()).not.toContain("four");
    await page.getByText("Working…").waitFor();
    expect(await page.evaluate("getComputedStyle(document.querySelector('.dots')).animationName")).toBe("none");
    model.letGo("half");
    await replies(page).getByText("three four").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
  });

  it("the chat shows a tool call in one line, and its result once the user opens that line", async () => {
    const page = await chatOf("alice", await session(), { viewport: { width: 1100, height: 720 } });
    await ask(page, GREETING);
    await replies(page).getByText("I can run commands").waitFor();
    await ask(page, QUESTION);
    await replies(page).getByText("Linux").waitFor();
    const tool = page.locator("details.tool-completed");
    await tool.getByText("bash").click();
    await tool.locator("pre").getByText("Linux").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
    await picture(page, "console");
    await page.emulateMedia({ colorScheme: "dark" });
    await picture(page, "console-dark");
  });

  it("the chat shows HTML in a reply as text, images as links, and each text in its writing direction", async () => {
    const page = await chatOf("alice", await session());
    const reply = [
      "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
      "![pixel](https://evil.example/pixel.png) [click](javascript:alert(1)) [good](https://good.example/)",
      "مرحبا بالعالم",
      "你好，世界",
      "| a | b |\n|---|---|\n| 1 | 2 |",
    ].join("\n\n");
    await ask(page, say(reply));
    const shown = replies(page);
    await shown.getByText("你好，世界").waitFor();
    expect(await shown.textContent()).toContain(
      "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
    );
    expect(await page.evaluate("window.hacked")).toBeUndefined();
    expect(await shown.locator("img, script").count()).toBe(0);
    const links = await shown
      .locator("a")
      .evaluateAll((all) => all.map((a) => [a.getAttribute("href"), a.getAttribute("rel")]));
    expect(links).toEqual([
      ["https://evil.example/pixel.png", "noopener noreferrer"],
      [null, "noopener noreferrer"],
      ["https://good.example/", "noopener noreferrer"],
    ]);
    const isRightToLeft = async (text: string) =>
      await shown.getByText(text).evaluate((element) => element.matches(":dir(rtl)"));
    expect([await isRightToLeft("مرحبا"), await isRightToLeft("你好")]).toEqual([true, false]);
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
    await page.setViewportSize({ width: 390, height: 760 });
    await page.emulateMedia({ colorScheme: "dark" });
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
  });

  it("a browser shows replies to its user piece by piece, and replies to other members once complete", async () => {
    const id = await session(["bob"]);
    const [alice, bob] = [await chatOf("alice", id), await chatOf("bob", id)];
    await ask(alice, "!pause for-alice question of alice");
    await replies(alice).getByText("question of").waitFor();
    await bob.getByText("Working… The reply appears here when it is complete.").waitFor();
    model.letGo("for-alice");
    for (const page of [alice, bob]) await replies(page).getByText("question of alice").waitFor();
    await bob.getByRole("button", { name: "Send" }).waitFor();
    await ask(bob, "question of bob");
    for (const page of [alice, bob]) await replies(page).getByText("question of bob").waitFor();
    expect(await replies(alice).count()).toBe(2);
    expect(await replies(bob).count()).toBe(2);
    expect(await alice.getByRole("article", { name: "Your prompt" }).count()).toBe(1);
  });

  it("after a reload during a turn, the chat shows that the turn runs, and then its reply exactly once", async () => {
    const page = await chatOf("alice", await session());
    await ask(page, "first");
    await replies(page).getByText("you said: first").waitFor();
    await ask(page, "!hold reload the second");
    await eventually("the model", () => model.shown("!hold reload") > 0);
    await page.reload();
    await page.getByText("!hold reload the second").waitFor();
    await page.getByText("Working…").waitFor();
    model.letGo("reload");
    await replies(page).getByText("the second").waitFor();
    expect(await replies(page).count()).toBe(2);
    await page.getByRole("button", { name: "Send" }).waitFor();
  });

  it("pressing Esc twice stops a turn, and pressing Esc once does not", async () => {
    const page = await chatOf("alice", await session());
    await ask(page, "!hold for-ever wait");
    await eventually("the model", () => model.shown("!hold for-ever") > 0);
    await field(page).press("Escape");
    await page.getByText("Press Esc again to stop the turn.").waitFor();
    expect(await page.getByText("The turn was stopped.").count()).toBe(0);
    await field(page).press("Escape");
    await page.getByText("The turn was stopped.").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
    model.letGo("for-ever");
  });

  it("the chat shows an error in plain words, and keeps a prompt that was not accepted", async () => {
    const id = await session();
    const page = await chatOf("alice", id);
    await at.fleet.pool.drain({ drainTimeout: "1s" });
    try {
      await ask(page, "while the fleet drains");
      await expect.poll(async () => await page.getByRole("alert").textContent()).toContain("takes no new");
      expect(await field(page).inputValue()).toBe("while the fleet drains");
    } finally {
      await at.fleet.pool.undrain();
    }
  });

  it("Up and Down at the start of an unchanged field recall the prompts of the conversation", async () => {
    const page = await chatOf("alice", await session());
    for (const [index, prompt] of ["first", "second"].entries()) {
      await ask(page, prompt);
      await replies(page).nth(index).getByText(`you said: ${prompt}`).waitFor();
      await page.getByRole("button", { name: "Send" }).waitFor();
    }
    const recalled: string[] = [];
    for (const key of ["ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown", "ArrowDown", "ArrowUp"]) {
      await field(page).press(key);
      recalled.push(await field(page).inputValue());
    }
    expect(recalled).toEqual(["second", "first", "first", "second", "", "second"]);
    await field(page).press("End");
    await field(page).press("ArrowUp");
    expect(await field(page).inputValue()).toBe("second");
    await field(page).fill("a draft");
    await field(page).press("Home");
    await field(page).press("ArrowUp");
    expect(await field(page).inputValue()).toBe("a draft");
  });

  it("a prompt that is sent again after a lost connection has the same key, so that it runs only once", async () => {
    const id = await session();
    const page = await chatOf("alice", id);
    const keys: (string | undefined)[] = [];
    let isLost = true;
    await page.route("**/turns", async (route) => {
      keys.push(route.request().headers()["idempotency-key"]);
      if (!isLost) return await route.continue();
      isLost = false;
      await route.fetch();
      await route.abort("connectionreset");
    });
    await ask(page, `${id}, once`);
    await expect.poll(async () => await field(page).inputValue()).toBe(`${id}, once`);
    await ask(page, `${id}, once`);
    await replies(page).getByText(`${id}, once`).first().waitFor();
    await expect.poll(() => keys.length).toBe(2);
    await page.getByRole("button", { name: "Send" }).waitFor();
    await ask(page, `${id}, once`);
    await expect.poll(() => keys.length).toBe(3);
    expect([keys[0] === keys[1], keys[1] === keys[2]]).toEqual([true, false]);
    await expect.poll(() => model.shown(`${id}, once`)).toBeGreaterThan(1);
    // The runtime writes the prompt to the history after it has sent the prompt to the model.
    const prompts = async () => (await at.fleet.sessions.transcript(id, { user: "alice" })).entries.filter(isPrompt);
    await expect.poll(async () => (await prompts()).length).toBe(2);
  });

  it("a link to a session with an id such as “..” requests no other route of the API", async () => {
    const page = await browser.person();
    await signIn(page, await at.token("alice"));
    const paths: string[] = [];
    page.on("request", (request) => paths.push(new URL(request.url()).pathname));
    for (const id of [".", "..", "..%2f..", "%2e%2e"]) {
      await page.goto(`/#/sessions/${id}`);
      await page.getByRole("alert").waitFor();
      await page.goto("/#/sessions");
    }
    const others = paths.filter(
      (path) => /^\/v1\/./.test(path) && !/^\/v1\/(?:me|sessions|sessions\/[^/]+(?:\/requests)?)$/.test(path),
    );
    expect(others).toEqual([]);
    expect(paths).toContain("/v1/sessions/..%20");
  });

  it("a user creates, shares and deletes a session with the keyboard, and confirms the deletion", async () => {
    const id = unused("made");
    const page = await browser.person();
    await signIn(page, await at.token("alice"));
    await page.getByRole("button", { name: "New session" }).press("Enter");
    await page.getByRole("textbox", { name: "Id" }).fill(id);
    await page.getByLabel("Purpose").fill("try it");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: id }).waitFor();
    await page.getByRole("button", { name: "Share" }).press("Enter");
    await page.getByRole("textbox", { name: "Members" }).fill("bob, carol");
    await page.keyboard.press("Enter");
    await page.getByRole("button", { name: "2 members" }).waitFor();
    expect((await at.fleet.sessions.get(id, { user: "alice" })).members).toEqual(["bob", "carol"]);
    const title = `Title of ${id}`;
    await page.getByRole("button", { name: "Rename" }).press("Enter");
    await page.getByRole("textbox", { name: "Title" }).fill(title);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: title }).waitFor();
    await page.getByText("expires in 30 days").waitFor();
    await page.getByRole("link", { name: "Back to the sessions" }).press("Enter");
    await page.getByRole("heading", { name: "Sessions" }).waitFor();
    await page.keyboard.press("/");
    await page.keyboard.type(id);
    await expect.poll(async () => await page.getByRole("listitem").count()).toBe(1);
    const dialog = page.getByRole("dialog");
    await page.getByRole("button", { name: `Delete ${title}` }).press("Enter");
    await dialog.waitFor();
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "hidden" });
    expect(await at.fleet.sessions.get(id, { user: "alice" })).toMatchObject({ id });
    await page.getByRole("button", { name: `Delete ${title}` }).press("Enter");
    await page.getByRole("button", { name: "Delete the session" }).press("Enter");
    await page.getByText("No session matches.").waitFor();
  });

  it("a user with the scope read sees the conversation, but no field for prompts", async () => {
    const id = await session();
    const page = await browser.person();
    await signIn(page, await at.token("alice", ["read"]));
    await page.goto(`/#/sessions/${id}`);
    await page.getByText("you can read this conversation but not write").waitFor();
    expect(await field(page).count()).toBe(0);
  });
});

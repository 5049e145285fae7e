import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "../http/harness.js";
import { barriers, noChromium, overflow, signIn, TestBrowser } from "./harness.js";

const GREETING = "What can you do here?";
const QUESTION = "Which system do you run on?";

const command = (text: string, description = "Try it") =>
  `!tool bash ${JSON.stringify({ command: text, description })}`;
const say = (text: string) => `!say ${Buffer.from(text).toString("base64")}`;

describe.skipIf(noChromium !== null)("a permission or a question in the console", () => {
  let model: ScriptedModel;
  let at: TestApi;
  let browser: TestBrowser;

  beforeAll(async () => {
    model = await startScriptedModel({
      [GREETING]: say(
        "I can run commands in this folder, read and write files, and search. I ask before I change something.",
      ),
      [QUESTION]: command("uname -sm", "Show the system"),
    });
    const provider = { type: "openai" as const, baseUrl: model.baseUrl };
    at = await TestApi.open({ config: { provider, session: { model: "gpt-4.1", approve: "ask" } } });
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

  async function chat(members: readonly string[] = []): Promise<{ id: string; page: Page }> {
    const id = unused("asking");
    const shared = members.length === 0 ? {} : { members: [...members] };
    await at.fleet.sessions.create({ user: "alice", sessionId: id, purpose: "review", ...shared });
    const page = await browser.person();
    await signIn(page, await at.token("alice"));
    await page.goto(`/#/sessions/${id}`);
    return { id, page };
  }

  async function ask(page: Page, prompt: string): Promise<void> {
    await page.getByRole("textbox", { name: "Prompt" }).fill(prompt);
    await page.keyboard.press("Enter");
  }

  const permission = (page: Page) => page.getByRole("region", { name: "Permission" });
  it("a permission shows the command, and the turn waits until the user approves it", async () => {
    const { page } = await chat();
    await ask(page, command("echo approved-$((20 + 3))"));
    await permission(page).getByText("echo approved-$((20 + 3))").waitFor();
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
    await page.setViewportSize({ width: 390, height: 760 });
    expect([await barriers(page), await overflow(page)]).toEqual([[], 0]);
    await permission(page).getByRole("button", { name: "Approve" }).click();
    await page.getByRole("article", { name: "Reply" }).getByText("approved-23").waitFor();
    expect(await permission(page).count()).toBe(0);
  });

  it("after the last answer, the focus moves back to the prompt", async () => {
    const { page } = await chat();
    await ask(page, command("echo focus"));
    await permission(page).getByRole("button", { name: "Approve" }).press("Enter");
    await expect.poll(async () => await page.evaluate("document.activeElement.ariaLabel")).toBe("Prompt");
  });

  it("a permission also appears in a later turn of a conversation", async () => {
    const { page } = await chat();
    await ask(page, GREETING);
    await page.getByRole("article", { name: "Reply" }).getByText("I ask before I change").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
    await ask(page, QUESTION);
    await permission(page).getByText("uname -sm").waitFor();
    await permission(page).getByRole("button", { name: "Approve" }).click();
    await page.getByRole("article", { name: "Reply" }).getByText("Linux").waitFor();
    await page.locator("details.tool-completed summary").click();
  });

  it("a command that the user denies with a reason does not run, and is shown as refused", async () => {
    const { page } = await chat();
    await ask(page, command("echo refused-$((20 + 3))"));
    await permission(page).getByRole("textbox").fill("not on this machine");
    await permission(page).getByRole("button", { name: "Deny" }).click();
    await page.locator("details.tool-refused").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
    expect(await page.getByText("refused-23").count()).toBe(0);
  });

  it("a permission is still shown after a reload, and can be answered in another tab", async () => {
    const { id, page } = await chat();
    await ask(page, command("echo reloaded-$((20 + 3))"));
    await permission(page).waitFor();
    await page.reload();
    await permission(page).waitFor();
    const other = await browser.page(page.context());
    await other.goto(`/#/sessions/${id}`);
    await permission(other).getByRole("button", { name: "Approve" }).click();
    for (const each of [page, other]) {
      await each.getByRole("article", { name: "Reply" }).getByText("reloaded-23").waitFor();
      await expect.poll(async () => await permission(each).count()).toBe(0);
    }
  });

  it("a question with choices has a button for each choice, and a question without choices accepts text", async () => {
    const { page } = await chat();
    await ask(page, '!tool ask_user {"question": "Which colour?", "choices": ["red", "green"]}');
    const question = page.getByRole("region", { name: "Question" });
    await question.getByRole("heading", { name: "Which colour?" }).waitFor();
    await question.getByRole("button", { name: "green" }).click();
    await page.getByRole("article", { name: "Reply" }).getByText("green").waitFor();
    await page.getByRole("button", { name: "Send" }).waitFor();
    await ask(page, '!tool ask_user {"question": "Which animal?"}');
    await question.getByRole("textbox").fill("حصان");
    await page.keyboard.press("Enter");
    await page.getByRole("article", { name: "Reply" }).getByText("حصان").waitFor();
  });
});

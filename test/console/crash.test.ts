import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { TestFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";
import { noChromium, overflow, signIn, TestBrowser } from "./harness.js";

/** A moment of a turn. `name` is the id of the session, and the model knows it as the name of a gate. */
interface Moment {
  prompt(name: string): string;
  /** Resolves when the turn is at this moment. */
  reached(page: Page, name: string): Promise<unknown>;
  /** Lets the turn go on to its end. */
  finish(page: Page, name: string): Promise<unknown>;
  reply: string;
}

describe.skipIf(noChromium !== null)("the console after a crash", () => {
  let model: ScriptedModel;
  let commands: TestFleet;
  let serving: Serving;
  let network: CuttingProxy;
  let browser: TestBrowser;
  let token: string;

  beforeAll(async () => {
    model = await startScriptedModel();
    commands = new TestFleet({
      ...FAST_HEALTH,
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
      COPILOTFLEET_SESSION_MODEL: "gpt-4.1",
      COPILOTFLEET_SESSION_APPROVE: "ask",
    });
    network = await CuttingProxy.start(0);
    await startServe();
    token = (await commands.json<{ token: string }>(["token", "issue", "--user", "alice"])).token;
    browser = await TestBrowser.open(`http://127.0.0.1:${network.port}`);
  });
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await network?.end();
    await serving?.end();
    await commands?.end();
    await model[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    await browser.closePages();
    expect(browser.offences.splice(0)).toEqual([]);
  });

  async function startServe(): Promise<void> {
    serving = await serve(commands, { args: ["--http", "127.0.0.1:0"] });
    network.target = Number(new URL(String((await serving.logged("serving")).http)).port);
  }
  async function killServe(page: Page): Promise<void> {
    serving.kill("SIGKILL");
    await serving.done;
    await lost(page).waitFor();
    await startServe();
  }
  async function killServer(): Promise<void> {
    const { servers } = await commands.json<{ servers: { pid: number | null }[] }>(["ps"]);
    process.kill(servers[0]?.pid ?? Number.NaN, "SIGKILL");
  }
  async function cutNetwork(page: Page): Promise<void> {
    const open = network.hold();
    network.cutAll();
    await lost(page).waitFor();
    open();
  }

  const lost = (page: Page) => page.getByText("The connection is lost.");
  const marks = (page: Page) => page.getByText("[incomplete]");
  const replies = (page: Page) => page.getByRole("article", { name: "Reply" });
  const permission = (page: Page) => page.getByRole("region", { name: "Permission" });
  const again = (page: Page) => page.getByRole("button", { name: "Send again" });
  const idle = async (page: Page) => await page.getByRole("button", { name: "Send", exact: true }).waitFor();

  async function chatWith(id: string, prompt: string): Promise<Page> {
    await commands.json(["create", "--user", "alice", "--id", id]);
    const page = await browser.person();
    await signIn(page, token);
    await page.goto(`/#/sessions/${id}`);
    await page.getByRole("textbox", { name: "Prompt" }).fill(prompt);
    await page.keyboard.press("Enter");
    return page;
  }
  /** The banners about the connection and about errors. */
  async function hasNoBanner(page: Page): Promise<void> {
    await lost(page).waitFor({ state: "detached" });
    await expect.poll(async () => await page.getByRole("alert").count()).toBe(0);
  }

  const transcript = async (id: string) => {
    const { stdout } = await commands.run(["transcript", id, "--user", "alice", "--json"]);
    return (JSON.parse(stdout) as { entries: { failure: string | null }[] }).entries;
  };
  const letGo = async (_: Page, name: string) => model.letGo(name);
  const DURING: Record<string, Moment> = {
    "before the first piece of the reply": {
      prompt: (name) => `!hold ${name} one two three`,
      reached: async (_, name) => {
        await eventually("the model", () => model.shown(name) > 0);
        // The runtime records the prompt up to 0.1 s after it has sent it to the model.
        await eventually("the history", async () => (await transcript(name)).length > 0);
      },
      finish: letGo,
      reply: "two three",
    },
    "in the middle of the reply": {
      prompt: (name) => `!pause ${name} one two three`,
      reached: async (page) => await replies(page).getByText("one two").waitFor(),
      finish: letGo,
      reply: "two three",
    },
    "while a permission waits": {
      prompt: () => `!tool bash ${JSON.stringify({ command: "echo done-$((20 + 3))", description: "Try it" })}`,
      reached: async (page) => await permission(page).waitFor(),
      finish: async (page) => await permission(page).getByRole("button", { name: "Approve" }).click(),
      reply: "done-23",
    },
  };

  for (const [when, { prompt, reached, finish, reply }] of Object.entries(DURING)) {
    for (const [what, kill] of [["serve", killServe] as const, ["the server", killServer] as const]) {
      it(`if ${what} is killed ${when}, the chat marks the turn as the transcript does, and sends the prompt again`, async () => {
        const name = unused("crash");
        const page = await chatWith(name, prompt(name));
        await reached(page, name);
        await kill(page);
        await marks(page).waitFor();
        await hasNoBanner(page);
        await again(page).waitFor();
        const mark = `[incomplete] ${(await transcript(name)).at(-1)?.failure}`;
        expect(await marks(page).textContent()).toBe(mark);
        await page.reload();
        await marks(page).waitFor();
        expect(await marks(page).textContent()).toBe(mark);
        await again(page).click();
        await finish(page, name);
        await replies(page).getByText(reply).waitFor();
        await idle(page);
        expect([await marks(page).count(), await again(page).count()]).toEqual([1, 0]);
        await page.reload();
        await marks(page).waitFor();
        expect(await replies(page).count()).toBe(1);
      });
    }

    it(`if the network fails ${when}, the chat shows the whole reply after it has connected again`, async () => {
      const name = unused("crash");
      const page = await chatWith(name, prompt(name));
      await reached(page, name);
      await cutNetwork(page);
      await hasNoBanner(page);
      await finish(page, name);
      await replies(page).getByText(reply).waitFor();
      await hasNoBanner(page);
      expect([await marks(page).count(), await again(page).count(), await overflow(page)]).toEqual([0, 0, 0]);
    });
  }

  it("if serve, the server or the network fails after a turn, the chat marks nothing, and runs the next turn", async () => {
    const page = await chatWith(unused("crash"), "one two three");
    for (const [index, fail] of [killServe, killServer, cutNetwork].entries()) {
      await replies(page).getByText("two three").nth(index).waitFor();
      await idle(page);
      await fail(page);
      await hasNoBanner(page);
      await page.getByRole("textbox", { name: "Prompt" }).fill(`${index} one two three`);
      await page.keyboard.press("Enter");
    }
    await replies(page).getByText("two three").nth(3).waitFor();
    expect(await marks(page).count()).toBe(0);
  });
});

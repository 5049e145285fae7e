import { existsSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import axe, { type AxeResults } from "axe-core";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";

/** chromium-headless-shell is Chromium without windows. It takes half the processor time. */
const CHROMIUM = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
  .map((name) => `/usr/bin/${name}`)
  .find((path) => existsSync(path));

/** How long a page may take for one step, in milliseconds. */
const PATIENCE_MS = 60_000;

/** Null if this machine has no Chromium. */
export const noChromium =
  CHROMIUM === undefined ? "Chromium is not installed (apt-get install chromium-headless-shell)" : null;

/** Something that a page of the console must not do. */
export interface Offence {
  kind: "console" | "error" | "foreign request" | "policy";
  text: string;
}

/** A browser that records what its pages must not do: errors, policy violations, requests to other addresses. */
export class TestBrowser implements AsyncDisposable {
  readonly offences: Offence[] = [];
  readonly #browser: Browser;
  readonly #origin: string;

  private constructor(browser: Browser, origin: string) {
    this.#browser = browser;
    this.#origin = origin;
  }

  static async open(origin: string): Promise<TestBrowser> {
    // Without --no-sandbox, Chromium refuses to run as root.
    const args = ["--no-sandbox", "--disable-dev-shm-usage"];
    return new TestBrowser(await chromium.launch({ executablePath: CHROMIUM ?? "", args }), origin);
  }

  /** A page with its own cookies, as in another person's browser. */
  async person(options: Parameters<Browser["newContext"]>[0] = {}): Promise<Page> {
    // Animations would double the processor time of a page.
    const settings = { baseURL: this.#origin, reducedMotion: "reduce", ...options } as const;
    return await this.page(await this.#browser.newContext(settings));
  }

  async page(context: BrowserContext): Promise<Page> {
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    const offend = (kind: Offence["kind"], text: string) => this.offences.push({ kind, text });
    page.on("pageerror", ({ message }) => offend("error", message));
    page.on("console", (message) => {
      if (/Content.Security.Policy|Trusted/i.test(message.text())) offend("policy", message.text());
    });
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(`${this.#origin}/`) && !url.startsWith("data:")) offend("foreign request", url);
    });
    return page;
  }

  /** Closes the pages of all persons, even after a failed test, so that none of them still uses the fleet. */
  async closePages(): Promise<void> {
    await Promise.all(this.#browser.contexts().map(async (context) => await context.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
  }
}

/** The serious and critical accessibility findings of axe-core, each with its HTML element. */
export async function barriers(page: Page): Promise<string[]> {
  if (!(await page.evaluate("'axe' in window"))) await page.evaluate(axe.source);
  const { violations } = (await page.evaluate("axe.run({ resultTypes: ['violations'] })")) as AxeResults;
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  return serious.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`));
}

/** By how many pixels the page is wider than its window. */
export async function overflow(page: Page): Promise<number> {
  return Number(await page.evaluate("document.documentElement.scrollWidth - innerWidth"));
}

/** Signs in with a token, as a person does. */
export async function signIn(page: Page, token: string): Promise<void> {
  await page.goto("/");
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("navigation", { name: "Pages" }).waitFor();
}

const LARGEST_PICTURE = 70_000;

/** Makes a picture for the docs, if the tests run with `COPILOTFLEET_TEST_PICTURES=1`. */
export async function picture(page: Page, name: string): Promise<void> {
  if (process.env.COPILOTFLEET_TEST_PICTURES !== "1") return;
  const path = fileURLToPath(new URL(`../../docs/${name}.png`, import.meta.url));
  await page.screenshot({ path, animations: "disabled", caret: "hide" });
  if (statSync(path).size > LARGEST_PICTURE) throw new Error(`${path} has more than ${LARGEST_PICTURE} bytes`);
}

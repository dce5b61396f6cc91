export { GuestAgentClient } from '../../index'
